"""Kernels on a GPU where one is; elsewhere compiled for one, and emulated (`emulated.py`), or interpreted."""

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

import torch
from triton import knobs

import bestiary.nn.triton
from bestiary.nn.triton import available

FOLDER = Path(__file__).parent
GPU = torch.cuda.is_available()

sys.path.insert(0, str(FOLDER))  # as for the programs of this folder
emulated = import_module("emulated")
sys.path.remove(str(FOLDER))
INTERPRETED = emulated.interpreted() and not GPU

with knobs.runtime.scope():
    knobs.runtime.interpret = INTERPRETED
    for module in iter_modules(bestiary.nn.triton.__path__):
        import_module(f"bestiary.nn.triton.{module.name}")

if not GPU:
    emulated.start()


@pytest.fixture(autouse=True)
def without_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may run on a CPU, as in a process where the interpreter was asked for."""
    if not GPU:
        if not INTERPRETED and (reason := emulated.why_not()):
            pytest.skip(reason)
        monkeypatch.setattr(available, "interpreted", lambda: True)
        if INTERPRETED:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
    elif request.node.get_closest_marker("gpu") is None and "ahead" not in request.node.name:
        pytest.skip("kernels are run on the GPU that is here")


@pytest.fixture
def said_by() -> Callable[[str], Any]:
    """What a program of this folder prints last, as JSON."""

    def run(name: str) -> Any:
        environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if INTERPRETED else {})}
        command = [sys.executable, "-W", "ignore", str(FOLDER / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
