"""Activations as classes of their own; in core they are functions known by a configuration's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from bestiary.nn import get_act_fn
from bestiary.nn.activation import Activation
from bestiary.nn.ops.activation import gelu, quick_gelu, relu2


class ReLUSquaredActivation(Activation):
    def __init__(self) -> None:
        super().__init__("relu2", relu2)


class NewGELU(Activation):
    def __init__(self) -> None:
        super().__init__("gelu_new", lambda x: gelu(x, approximate="tanh"))


class FastGELU(NewGELU):
    pass


class QuickGELU(Activation):
    def __init__(self) -> None:
        super().__init__("quick_gelu", quick_gelu)


class _Activations(Mapping[str, nn.Module]):
    """A configuration's name of an activation → a layer of it."""

    def __getitem__(self, name: str) -> nn.Module:
        return get_act_fn(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


ACTIVATIONS = _Activations()
