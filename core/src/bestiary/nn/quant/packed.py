"""The head's fp32 weight in oneDNN's blocked layout, for CPUs: read and multiplied faster.

For few rows BLAS reads a large row-major weight at half of the memory's bandwidth or less, and repacks it in each
call; packed once, after loading, a vocabulary of 49,152 takes 0.4 of the time. A head tied to an embedding gets a copy,
since rows can be looked up only in the plain one. Layers inside the model stay plain: oneDNN sums each product in one
chain, with two to three times BLAS's rounding error, which the last layer adds once and inner layers amplify.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bestiary.nn.ops.linear import FIXED_TILE, linear

from .base import UnquantizedLinearMethod

_ROWS = 16
"""The batch the layout is chosen for; it serves any other."""


class PackedLinearMethod(UnquantizedLinearMethod):
    """`layer.weight` is an opaque tensor of the original shape."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, bias, "none", [], "")
        return product

    def product(self, layer: nn.Module) -> None:
        return None


def pack_weight(layer: Any) -> None:
    """Pack the plain weight of a finished head, where nothing speaks against it (`why_not_packed`)."""
    if type(layer.quant_method) is UnquantizedLinearMethod and why_not_packed(layer.weight) is None:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        layer._parameters["weight"] = nn.Parameter(packed, requires_grad=False)
        layer.quant_method = PackedLinearMethod()


def is_packed_later(layer: Any, device: str) -> bool:
    """Whether `pack_weight` will pack the weight of a head that is not loaded yet, once it lies on `device`."""
    return type(layer.quant_method) is UnquantizedLinearMethod and why_not_packed(layer.weight, device) is None


def why_not_packed(weight: torch.Tensor, device: str | None = None) -> str | None:
    """None where `weight` can be packed, on its own device or on `device`, otherwise the reason in a few words."""
    if (device or weight.device.type) != "cpu" or weight.dtype is not torch.float32:
        return "only fp32 weights on a CPU are packed"
    if linear.active_pack is not None:
        return "another version of the op packs every weight"
    if linear.active is FIXED_TILE.function:
        return "in deterministic mode a row's product must not depend on its batch"
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch has no oneDNN"
    return None
