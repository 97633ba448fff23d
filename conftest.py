"""For every test of the workspace: one thread, since the models are tiny and machines are shared.

The tests of tests/clients run in an environment of their own, by scripts/clients."""

import os
import signal
import threading

collect_ignore = ["tests/clients"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("BESTIARY_KERNELS", "torch")  # core's own; those who test others ask for them
os.environ.setdefault("BESTIARY_PACKED_CACHE", "0")  # tests keep nothing in the home of who runs them

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so that programs which tests start hear it: workers of pytest-xdist ignore it, and children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
