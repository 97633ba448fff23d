"""Kernels by Triton's interpreter where there is no GPU (see the conftest of the workspace), and on a GPU where one is.

The modules of kernels are imported while the interpreter is switched on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

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


@pytest.fixture
def said_by() -> Callable[[str], Any]:
    """What a program of this folder prints last, as JSON, in a process where Triton is interpreted from the start."""

    def run(name: str) -> Any:
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(name))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
