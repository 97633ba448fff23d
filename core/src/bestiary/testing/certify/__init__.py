"""What `bestiary certify` does: a target becomes an installed distribution, its contracts run in a child process that
knows nothing of the caller's environment, and what the child reports becomes a certificate.

    wheel.py     a project folder becomes a wheel, a wheel a folder that stands first on the child's `sys.path`
    target.py    what the command line names becomes a `Subject`
    child.py     the child: pytest on the contracts, each step an event on a pipe
    watch.py     the parent: follows the events, ends a child that hangs
    document.py  the certificate as data
    project.py   the support table of a project that is not installed, for `bestiary new`
"""

MADE_HERE = "without a contract: "
"""What the label of a contract begins with that is made for an architecture which has none."""
