"""`Product`: a linear op with all its arguments but the input; what one layer computes, or each of several alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .packed import PackedWeight
from .registry import NOTHING, Op


class Product(NamedTuple):
    """``x → op(x, **tensors, **settings, bias=bias)``.

    Where it is stacked, every tensor has a first dimension more: `at` gives one of its products.

    Attributes:
        op: an op whose first argument is x ``[..., in]`` and which takes `weight`, maybe more, and `bias`.
        tensors: by the names of the op's arguments; those that are not wanted are left out.
        settings: the arguments that are no tensors.
    """

    op: Op[..., Tensor]
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = NOTHING
    bias: Tensor | None = None

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[..., in] → [..., out]``; `bias` is for layers that keep it themselves."""
        return self.op(x, **self.tensors, **self.settings, bias=self.bias if bias is None else bias)

    def at(self, index: int) -> Product:
        bias = None if self.bias is None else self.bias[index]
        return self._replace(tensors={name: each[index] for name, each in self.tensors.items()}, bias=bias)


def stacked(products: Sequence[Product], biases: Sequence[Tensor | None]) -> Product | None:
    """One for all `products`; None where they differ, or where their tensors are not slices of a stacked one."""
    first, bias = products[0], biases[0]
    if any(each.op is not first.op or each.settings != first.settings for each in products):
        return None
    tensors = {name: whole([each.tensors[name] for each in products]) for name in first.tensors}
    together = None if bias is None else whole([each for each in biases if each is not None])
    if (bias is not None and together is None) or any(each is None for each in tensors.values()):
        return None
    return first._replace(tensors={name: each for name, each in tensors.items() if each is not None}, bias=together)


def whole(slices: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose ``[0], [1], …`` these are, without a copy."""
    first = slices[0]
    if any(isinstance(each, PackedWeight) for each in slices) or not first.is_contiguous():
        return None
    step = first.nbytes
    for place, each in enumerate(slices):
        alike = each.shape == first.shape and each.dtype == first.dtype and each.is_contiguous()
        if not alike or each.data_ptr() != first.data_ptr() + place * step:
            return None
    if first.untyped_storage().nbytes() < first.storage_offset() * first.itemsize + len(slices) * step:
        return None
    shape, strides = (len(slices), *first.shape), (first.numel(), *first.stride())
    return torch.as_strided(first.detach(), shape, strides, first.storage_offset())
