"""The trust programme: what the engine and the server promise, tried out.

Every test names the case it tries (`case`), so that a run can be read as a table of cases. The sizes are three: fast,
`-m full` and `-m soak`.
"""
