"""For every test of the workspace: one thread, since the models are tiny and machines are shared.

The tests of tests/clients run in an environment of their own, by scripts/clients."""

import gc
import importlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from bestiary.api.registry import ModelRegistry

collect_ignore = ["tests/clients"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("BESTIARY_KERNELS", "torch")  # core's own; those who test others ask for them
os.environ.setdefault("BESTIARY_PACKED_CACHE", "0")  # tests keep nothing in the home of who runs them
# Machines are shared: how long an example takes says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_collection_finish() -> None:
    """What is imported and collected stays, and fills the memory: looks for garbage leave it out, and are rarer."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def registered_by_hand() -> Iterator[None]:
    """What a file registers by hand, the next one in the same process does not find."""
    before = dict(ModelRegistry._by_hand)
    yield
    ModelRegistry._by_hand.clear()
    ModelRegistry._by_hand.update(before)


if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so that programs which tests start hear it: workers of pytest-xdist ignore it, and children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("triton") is not None and os.environ.get("BESTIARY_TRITON") == "interpreted":
    # Triton's own functions are interpreted if they were imported so, and other packages may import them first
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("triton.language")
    del os.environ["TRITON_INTERPRET"]
