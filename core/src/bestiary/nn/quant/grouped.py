"""Weights of 4 or 8 bits, groups of inputs sharing scale and zero point: GPTQ, AWQ and their kin; int4 at load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product
from bestiary.nn.ops.quant import linear_int4, linear_uint8, packed

from .act_order import Columns, by_group, most_added
from .at_load import is_left_plain, quantizing_loader
from .base import QuantizationConfig, QuantizeMethodBase, keep_packed, packed_bytes
from .params import add_parameter, refuse_cut_groups, replace_parameter

AT_LOAD_GROUP = 32
"""Inputs of a group that int4 makes while loading; the same however many ranks there are."""


@dataclass(frozen=True, kw_only=True)
class GroupedLinearMethod(QuantizeMethodBase):
    """``weight[o, i] = (code - zero) * scale``, zero and scale those of the row's group that input i belongs to.

    `weight` uint8, codes of 4 bits packed two in a byte, ``[out, ceil(in / 2)]``, or of 8 bits one a byte,
    ``[out, in]``; `weight_scale` float32 and `weight_zero` uint8 ``[out, groups]``; where `ordered`, `group_of` int32
    ``[in]``, in whose place `order` is left once columns are sorted (`act_order`).
    Checkpoints' own layouts are changed to this one on the way in (`CheckpointConfig.converted`).

    Args:
        bits: 4 or 8. group_size: None for one group, a whole row.
        ordered: groups are made of inputs in an order of their own (GPTQ's `desc_act`). All of a row-parallel layer's
            groups are then kept by every rank.
        symmetric: the zero point is half the codes' range everywhere, and not stored.
        at_load: the checkpoint has plain weights.
    """

    bits: int = 4
    group_size: int | None = 128
    ordered: bool = False
    symmetric: bool = False
    at_load: bool = False

    def __str__(self) -> str:
        groups = "rows" if self.group_size is None else f"groups of {self.group_size}"
        return f"int{self.bits} in {groups}{' in an order of their own' if self.ordered else ''}"

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        rows, width = sum(output_partition_sizes), input_size_per_partition
        group = self.group_size or input_size
        whole = self.ordered or self.group_size is None
        if not whole:
            refuse_cut_groups(layer, width, input_size, group, "inputs")
        if self.bits == 4:
            refuse_cut_groups(layer, width, input_size, 2, "inputs")
        attrs = {**extra_weight_attrs, "output_dim": 0}
        groups = (rows, -(-(input_size if whole else width) // group))
        add_parameter(layer, "weight_scale", groups, torch.float32, attrs, input_dim=None if whole else 1)
        if not self.symmetric:
            add_parameter(layer, "weight_zero", groups, torch.uint8, attrs, input_dim=None if whole else 1)
        if self.ordered:
            add_parameter(layer, "group_of", (width,), torch.int32, extra_weight_attrs, input_dim=0)
        if self.at_load:
            attrs["weight_loader"] = quantizing_loader(layer, partial(int4_groups, group=group))
        codes = width if self.bits == 8 else -(-width // 2)
        add_parameter(layer, "weight", (rows, codes), torch.uint8, attrs, input_dim=1, num_weights=rows * width)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.symmetric:
            layer.weight_zero = torch.full_like(layer.weight_scale.data, 2 ** (self.bits - 1), dtype=torch.uint8)
        if self.ordered:
            self._sort(layer)
        keep_packed(layer, self.packed(layer))

    def _sort(self, layer: Any) -> None:
        found = Columns(
            layer.weight.data, layer.weight_scale.data, layer.weight_zero.data, self._group(layer), self.bits
        )
        made, layer.order = by_group(found, layer.group_of.data)
        del layer.group_of
        if made.scale is found.scale:  # in place, where experts' layers have views of one tensor
            layer.weight.data.copy_(made.codes)
            return
        layer.group_size = made.group_size
        replace_parameter(layer, "weight", made.codes)
        replace_parameter(layer, "weight_scale", made.scale)
        if self.symmetric:
            layer.weight_zero = made.zero
        else:
            replace_parameter(layer, "weight_zero", made.zero)

    def packed(self, layer: Any) -> PackedWeight | None:
        zero = layer.weight_scale if self.symmetric and layer.weight.is_meta else layer.weight_zero
        return self._pack(layer, zero)

    def bytes_added(self, layer: Any) -> int:
        added = int(layer.weight_scale.numel()) if self.symmetric else 0
        if self.ordered and layer.input_size_per_partition < layer.input_size:
            rows, groups = layer.weight_scale.shape
            added += most_added(rows, groups, layer.input_size_per_partition, self.bits)
        return added + packed_bytes(layer, self.packed(layer))

    @property
    def _product(self) -> Any:
        return linear_int4 if self.bits == 4 else linear_uint8

    def _pack(self, layer: Any, zero: torch.Tensor) -> PackedWeight | None:
        order = None if not self.ordered else layer.group_of if layer.weight.is_meta else layer.order
        packed: PackedWeight | None = self._product.pack(
            layer.weight, layer.weight_scale, zero, self._group(layer), order
        )
        return packed

    def _group(self, layer: Any) -> int:
        size: int = getattr(layer, "group_size", None) or self.group_size or layer.input_size_per_partition
        return size

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(layer)(x, bias)

    def product(self, layer: Any) -> Product:
        tensors = {"weight": layer.weight, "scale": layer.weight_scale, "zero": layer.weight_zero}
        if self.ordered:
            tensors["order"] = layer.order
        return Product(self._product, tensors, {"group_size": self._group(layer)})


def int4_groups(weight: torch.Tensor, group: int) -> dict[str, torch.Tensor]:
    """Each group's range, zero included, in 15 equal steps; rounded to nearest."""
    rows, width = weight.shape
    wide = torch.nn.functional.pad(weight.float(), (0, -width % group)).view(rows, -1, group)
    low, high = wide.amin(-1, keepdim=True).clamp_max(0), wide.amax(-1, keepdim=True).clamp_min(0)
    scale = (high - low) / 15
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale)
    codes = (torch.round(wide / scale) + zero).clamp_(0, 15).to(torch.uint8).view(rows, -1)[:, :width]
    return {
        "weight": packed(codes),
        "weight_scale": scale.squeeze(-1),
        "weight_zero": zero.squeeze(-1).to(torch.uint8),
    }


class Int4Config(QuantizationConfig):
    """Quantizes every linear layer while loading, in groups of 32 inputs, the last one perhaps of fewer.

    Embeddings, heads and routers stay as they are.
    """

    name = "int4"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int4Config:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        return None if is_left_plain(layer) else _AT_LOAD


_AT_LOAD = GroupedLinearMethod(at_load=True, group_size=AT_LOAD_GROUP)
