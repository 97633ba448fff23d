"""`vllm.triton_utils`: Triton where it is installed; otherwise a module whose decorators leave functions alone.

Kernels are written at the top of model files, so the decorators must work everywhere; launching one must not pass
silently where nothing could run it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

HAS_TRITON = importlib.util.find_spec("triton") is not None


def _no_kernel(*args: Any, **options: Any) -> Any:
    """`triton.jit` and its like: with a function or with options."""
    if len(args) == 1 and callable(args[0]) and not options:
        return _NotLaunched(args[0])
    return lambda function: function if isinstance(function, _NotLaunched) else _NotLaunched(function)


class _NotLaunched:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError(f"the kernel {self.__name__} needs Triton: pip install 'bestiary[triton]'")


class _Language(ModuleType):
    """Stands for `triton.language` in annotations: every name is `object`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


triton: Any
tl: Any
if HAS_TRITON:
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")
else:
    triton = SimpleNamespace(
        jit=_no_kernel, autotune=_no_kernel, heuristics=_no_kernel, Config=dict, cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << (n - 1).bit_length(),
    )  # fmt: skip
    tl = _Language("triton.language")
