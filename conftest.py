"""For every test of the workspace: one thread, since the models are tiny and machines are shared.

The tests of tests/clients run in an environment of their own, by scripts/clients."""

import os

collect_ignore = ["tests/clients"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
