"""For every test of the workspace: one thread, since the models are tiny and machines are shared."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
