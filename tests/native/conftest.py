"""These tests need the wheel of native kernels. Where it is not installed (scripts say so loudly: no compiler) they are
skipped; where it is and its library cannot be loaded, they fail."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

try:
    import bestiary_cpu  # noqa: F401
except ImportError as reason:
    MISSING = f"bestiary-cpu is not here: {reason}"
else:
    MISSING = ""


def pytest_collection_modifyitems(items):
    for item in items:
        if MISSING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))
