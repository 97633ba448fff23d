"""These tests need the wheel of native kernels, and its compiled library."""

import sys
from pathlib import Path

import pytest

from bestiary.api.errors import BrokenPlugin

sys.path.append(str(Path(__file__).parent))

try:
    import bestiary_cpu

    bestiary_cpu.library()
except (ImportError, BrokenPlugin) as reason:
    MISSING = f"bestiary-cpu is not here: {reason}"
else:
    MISSING = ""


def pytest_collection_modifyitems(items):
    for item in items:
        if MISSING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))
