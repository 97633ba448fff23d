"""int8 weights, one scale a row: beside plain activations (W8A16) or int8 ones (W8A8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product
from bestiary.nn.ops.quant import linear_int8, linear_int8_int8

from .at_load import is_left_plain, quantizing_loader
from .base import QuantizationConfig, QuantizeMethodBase, keep_packed, packed_bytes
from .params import PER_PART, add_parameter, one_for_all, per_row, replace_parameter


class Int8Config(QuantizationConfig):
    """Quantizes every linear layer while loading; embeddings, the head and routers stay as they are."""

    name = "int8"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int8Config:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        return None if is_left_plain(layer) else Int8LinearMethod(at_load=True)


@dataclass(frozen=True, kw_only=True)
class Int8LinearMethod(QuantizeMethodBase):
    """`weight` int8 ``[out, in]``, `weight_scale` float32 ``[out]``.

    Args:
        activations: rounded to int8 by each token's own scale, or by a stored one (`input_scale`); None leaves them.
        symmetric: whether the activations' zero is 0; a stored zero point is `input_zero_point`.
        per_tensor: the checkpoint has one weight scale for each part of a fused layer.
        at_load: the checkpoint has plain weights.
    """

    activations: Literal["token", "static"] | None = None
    symmetric: bool = True
    per_tensor: bool = False
    at_load: bool = False

    def __str__(self) -> str:
        return "int8" if self.activations is None else f"int8, activations int8 ({self.activations})"

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        rows, parts = sum(output_partition_sizes), len(output_partition_sizes)
        attrs = {**extra_weight_attrs, "output_dim": 0}
        stored = {**attrs, "output_step": PER_PART, "part_sizes": output_partition_sizes}
        if self.per_tensor:
            add_parameter(layer, "weight_scale", (parts,), torch.float32, stored)
        else:
            add_parameter(layer, "weight_scale", (rows,), torch.float32, attrs)
        if self.activations == "static":
            add_parameter(layer, "input_scale", (parts,), torch.float32, stored)
            if not self.symmetric:
                add_parameter(layer, "input_zero_point", (parts,), torch.float32, stored)
        if self.at_load:
            attrs["weight_loader"] = quantizing_loader(layer, quantized_rows)
        add_parameter(layer, "weight", (rows, input_size_per_partition), torch.int8, attrs, input_dim=1)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.per_tensor:
            replace_parameter(layer, "weight_scale", per_row(layer.weight_scale))
        if self.activations == "static":
            replace_parameter(layer, "input_scale", layer.input_scale.max())
            if not self.symmetric:
                zero = one_for_all(layer.input_zero_point, layer, "input_zero_point")
                replace_parameter(layer, "input_zero_point", zero)
        keep_packed(layer, self.packed(layer))

    def packed(self, layer: Any) -> PackedWeight | None:
        if self.activations is not None:
            return None
        scale = torch.empty(len(layer.weight), device="meta") if layer.weight.is_meta else layer.weight_scale
        return linear_int8.pack(layer.weight, scale)

    def bytes_added(self, layer: Any) -> int:
        by_row = len(layer.weight) - layer.weight_scale.numel() if self.per_tensor else 0
        static = 1 - layer.input_scale.numel() if self.activations == "static" else 0
        added = int(by_row + (1 if self.symmetric else 2) * static) * torch.float32.itemsize
        return added + packed_bytes(layer, self.packed(layer))

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(layer)(x, bias)

    def product(self, layer: Any) -> Product:
        tensors = {"weight": layer.weight, "scale": layer.weight_scale}
        if self.activations is None:
            return Product(linear_int8, tensors)
        if self.activations == "static":
            tensors["input_scale"] = layer.input_scale
            if not self.symmetric:
                tensors["input_zero"] = layer.input_zero_point
        return Product(linear_int8_int8, tensors, {"symmetric": self.symmetric})


def quantized_rows(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """``weight ≈ int8 * scale``, ``scale = max|row| / 127``, rounded to nearest; rows of zeros get scale 1."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1) / 127.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return {"weight": torch.round(wide / scale[:, None]).to(torch.int8), "weight_scale": scale}
