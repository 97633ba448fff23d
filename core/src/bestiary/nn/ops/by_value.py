"""Elementwise functions whose result depends on the element's value alone.

On a CPU torch computes exp, sigmoid, GELU … in vectors, and what is left at the end of a run of memory one by one, in
other code whose last bit may differ. Where an element falls depends on the shape, so on the batch. Under `by_value`
every element takes the second way: torch's vector loops need elements that lie side by side, and here none do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "tanh", "erf", "erfc", "sin", "cos", "tan",
    "silu", "gelu", "softplus", "elu", "mish", "log_sigmoid_forward", "sinh", "cosh", "atan", "logit",
)  # fmt: skip


def _overloads() -> Mapping[Any, Any]:
    """Functions that change nothing → None; those that change their first argument → the function to copy from."""
    found: dict[Any, Any] = {}
    for name in _NAMES:
        function = getattr(torch.ops.aten, name).default
        found[function] = None
        if hasattr(torch.ops.aten, name + "_"):
            found[getattr(torch.ops.aten, name + "_").default] = function
    return found


class by_value(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it lasts, on a CPU, elementwise functions of floating-point tensors depend on each value alone."""

    _functions = _overloads()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled: without torch's guard against that, which costs more than most ops do."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in self._functions or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        first, plain = args[0], self._functions[func]
        apart = first.new_empty(*first.shape, 2)[..., 0].copy_(first)
        result = (plain or func)(apart, *args[1:], **(kwargs or {}))
        return result if plain is None else first.copy_(result)
