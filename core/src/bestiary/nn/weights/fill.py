"""Copying checkpoint tensors into parameters, and knowing afterwards which were filled.

Every copy goes through `fill`, which checks shapes and counts the elements written to each parameter; completeness is
then a sum, not a promise of whoever wrote the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

ShardId = str | int | tuple[int, ...] | None

_uses = 0


class WeightLoader(Protocol):
    """A parameter's `weight_loader` attribute: copies a whole checkpoint tensor, or one shard of a fused one."""

    def __call__(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None: ...


def fill(param: torch.Tensor, target: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copy `loaded` into `target`, a view of `param`, converting dtype; count it.

    Raises:
        WeightsMismatch: the shapes differ (a single element fits any target of one element).
    """
    if target.shape != loaded.shape:
        if target.numel() != 1 or loaded.numel() != 1:
            raise WeightsMismatch(
                f"expected shape {list(target.shape)}, the checkpoint has {list(loaded.shape)}",
                limit=list(target.shape),
                value=list(loaded.shape),
            )
        loaded = loaded.reshape(target.shape)
    target.copy_(loaded)
    count_filled(param, target.numel())


def count_filled(param: torch.Tensor, elements: int) -> None:
    """Record that `elements` more elements of `param` hold checkpoint values (or are declared padding)."""
    param.__dict__["elements_filled"] = elements_filled(param) + elements
    count_use()


def count_use() -> None:
    """Record that the tensor in hand was used, or left out on purpose."""
    global _uses
    _uses += 1


def uses() -> int:
    """How often tensors were used in this process; a difference of two readings tells whether one was."""
    return _uses


def elements_filled(param: torch.Tensor) -> int:
    return int(param.__dict__.get("elements_filled", 0))


def default_weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """Copy a checkpoint tensor into a parameter of the same shape."""
    fill(param, param.data, loaded_weight)


def set_weight_attrs(weight: torch.Tensor, attrs: dict[str, object] | None) -> None:
    """Set attributes on a parameter (``weight_loader``, ``output_dim`` …); none may exist yet."""
    for name, value in (attrs or {}).items():
        if hasattr(weight, name):
            raise AttributeError(f"the parameter already has an attribute {name!r}")
        setattr(weight, name, value)


def load_into(param: nn.Parameter, loaded: torch.Tensor, shard_id: ShardId = None) -> None:
    """Fill `param` by its own `weight_loader`, or by the default one."""
    loader: Callable[..., None] | None = getattr(param, "weight_loader", None)
    if loader is None:
        if shard_id is not None:
            raise WeightsMismatch(f"this parameter is not fused: it has no shard {shard_id!r}")
        default_weight_loader(param, loaded)
    elif shard_id is None:
        loader(param, loaded)
    else:
        loader(param, loaded, shard_id)
