"""Copying checkpoint tensors into parameters, and knowing afterwards which were filled.

Every copy goes through `fill`, which checks shapes and remembers which part of the parameter it wrote; completeness is
then a fact, not a promise of whoever wrote the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

ShardId = str | int | tuple[int, ...] | None

_uses = 0
_addresses: set[int] = set()


class WeightLoader(Protocol):
    """A parameter's `weight_loader` attribute: copies a whole checkpoint tensor, or one shard of a fused one."""

    def __call__(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None: ...


def fill(param: torch.Tensor, target: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copy `loaded` into `target`, a view of `param`, converting dtype. A part may come twice with the same values.

    Raises:
        WeightsMismatch: the shapes differ by more than dimensions of size one (GGUF drops these), or this part was
            loaded before and the values differ, or values of another kind or range would not survive.
    """
    count_use(loaded)
    if target.is_floating_point() and not loaded.is_floating_point():
        raise WeightsMismatch(
            f"expected floating-point numbers, the checkpoint has {str(loaded.dtype).removeprefix('torch.')}",
            limit="floating point", value=str(loaded.dtype),
        )  # fmt: skip
    if target.dtype != loaded.dtype and (_is_code(target.dtype) or _is_code(loaded.dtype)):
        wanted, found = (str(each.dtype).removeprefix("torch.") for each in (target, loaded))
        raise WeightsMismatch(f"expected {wanted}, the checkpoint has {found}", limit=wanted, value=found)
    if target.shape != loaded.shape:
        if target.squeeze().shape != loaded.squeeze().shape:
            raise WeightsMismatch(
                f"expected shape {list(target.shape)}, the checkpoint has {list(loaded.shape)}",
                limit=list(target.shape),
                value=list(loaded.shape),
            )
        loaded = loaded.reshape(target.shape)
    if _part(target) in _filled_parts(param):
        if torch.equal(target, loaded.to(target)):
            return
        raise WeightsMismatch("loaded already (tied layers?), and this tensor has other values")
    target.copy_(loaded)
    if _narrows(loaded.dtype, target.dtype) and _overflowed(target, loaded):
        raise WeightsMismatch(
            f"values too large for {str(target.dtype).removeprefix('torch.')}",
            limit=torch.finfo(target.dtype).max, value=float(loaded.abs().max()),
        )  # fmt: skip
    count_filled(param, target)


def _overflowed(target: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether a number became infinite on its way to `target`, which may be on another device."""
    infinite = target.isinf()
    return bool(infinite.any()) and bool((infinite.to(loaded.device) & ~loaded.isinf()).any())


def count_filled(param: torch.Tensor, part: torch.Tensor) -> None:
    """Record that `part`, a view of `param`, holds checkpoint values (or is declared padding)."""
    _filled_parts(param)[_part(part)] = part.numel()


def _is_code(dtype: torch.dtype) -> bool:
    """Whether numbers of this type are codes of a quantized weight: they mean nothing as another type."""
    return dtype.itemsize == 1 and dtype is not torch.bool


def _narrows(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether a finite number of one type can be infinite in the other."""
    both = source.is_floating_point and target.is_floating_point
    return both and target.itemsize > 1 and torch.finfo(source).max > 1.01 * torch.finfo(target).max


def _part(view: torch.Tensor) -> tuple[object, ...]:
    """Which elements of its parameter a view has."""
    return view.storage_offset(), tuple(view.shape), view.stride()


def _filled_parts(param: torch.Tensor) -> dict[tuple[object, ...], int]:
    parts: dict[tuple[object, ...], int] = param.__dict__.setdefault("filled_parts", {})
    return parts


def count_use(tensor: torch.Tensor | None = None) -> None:
    """Record that the tensor in hand (or `tensor`, a part of an earlier one) was used, or left out on purpose."""
    global _uses
    _uses += 1
    if tensor is not None:
        _addresses.add(tensor.data_ptr())


def uses() -> int:
    """How often tensors were used in this process; a difference of two readings tells whether one was."""
    return _uses


def used_addresses(*, forget: bool = False) -> set[int]:
    """Where the tensors lay that were used since the last time that this was asked to `forget`."""
    found = set(_addresses)
    if forget:
        _addresses.clear()
    return found


def elements_filled(param: torch.Tensor) -> int:
    """How many elements of `param` were filled; overlapping parts count as often as they were written."""
    return sum(_filled_parts(param).values())


def default_weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """Copy a checkpoint tensor into a parameter of the same shape."""
    fill(param, param.data, loaded_weight)


def set_weight_attrs(weight: torch.Tensor, attrs: dict[str, object] | None) -> None:
    """Set attributes on a parameter (``weight_loader``, ``output_dim`` …); none may exist yet."""
    for name, value in (attrs or {}).items():
        if hasattr(weight, name):
            raise AttributeError(f"the parameter already has an attribute {name!r}")
        setattr(weight, name, value)


def num_weights(param: torch.Tensor) -> int:
    """How many of the model's weights a parameter stands for: its elements, unless its layout says otherwise."""
    count: int = getattr(param, "num_weights", param.numel())
    return count


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
