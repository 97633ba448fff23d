"""The trust programme: what the engine and the server promise, tried out.

    python -m tests.trust.run --tier fast            the same tests as in continuous integration
    python -m tests.trust.run --tier full --record   longer, and written down under docs/reliability

Every test names the case it tries (`case`), so that a run can be read as a table of cases. The sizes are three: fast,
`-m full` and `-m soak`.
"""
