"""`CustomOp` and `PluggableLayer`: base classes of layers with a version for each kind of device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

C = TypeVar("C", bound=type)


class PluggableLayer(nn.Module):
    """A layer that others may replace; here it stays what it is."""

    @classmethod
    def register(cls, name: str, **options: Any) -> Callable[[C], C]:
        def remember(layer: C) -> C:
            layer.name = name  # type: ignore[attr-defined]
            return layer

        return remember

    @classmethod
    def register_oot(cls, *args: Any, **options: Any) -> Callable[[C], C]:
        return lambda layer: layer


class CustomOp(PluggableLayer):
    """A layer whose `forward` is its `forward_native`: the version in plain torch, which every such layer has."""

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    def forward_native(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward_native")

    @classmethod
    def enabled(cls) -> bool:
        return True
