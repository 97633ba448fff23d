"""Kernels by Triton's interpreter on a CPU: Triton's own functions, which they call, and the modules of kernels are
imported while it is switched on."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import pytest

import bestiary.nn.triton

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed")
    for module in iter_modules(bestiary.nn.triton.__path__):
        import_module(f"bestiary.nn.triton.{module.name}")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`why_not` and the interpreter's own switches are as they would be in a process that was started so."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
