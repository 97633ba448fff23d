"""Kernels by Triton's interpreter where there is no GPU (see the conftest of the workspace), and on a GPU where one is.

The modules of kernels are imported while the interpreter is switched on.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from triton import knobs

import bestiary.nn.triton

INTERPRETED = not Path("/dev/nvidiactl").exists()

with knobs.runtime.scope():
    knobs.runtime.interpret = INTERPRETED
    for module in iter_modules(bestiary.nn.triton.__path__):
        import_module(f"bestiary.nn.triton.{module.name}")


@pytest.fixture(autouse=True)
def interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`why_not` and the interpreter's own switches are as they would be in a process that was started so."""
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    elif request.node.get_closest_marker("gpu") is None and "ahead" not in request.node.name:
        pytest.skip("kernels are interpreted where there is no GPU")
