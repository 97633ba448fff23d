"""fp8 (e4m3) weights, beside plain activations or fp8 ones; the checkpoints called `fp8`.

Those of DeepSeek and Qwen have a scale for each block of 128 by 128 weights (arXiv 2412.19437, section 3.3), others one
for each matrix. Activations are rounded by a scale stored with the layer (`static`), or by scales of their own: each
token's, or where weights have blocks, each 128 inputs' of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bestiary.nn.ops.product import Product
from bestiary.nn.ops.quant import FP8_MAX, linear_fp8, linear_fp8_fp8, to_fp8

from .at_load import is_left_plain, quantizing_loader
from .base import QuantizationConfig, QuantizeMethodBase
from .checkpoint import CheckpointConfig
from .fields import Fields
from .names import matches_any
from .params import PER_PART, add_parameter, per_row, refuse_cut_groups, replace_parameter


@dataclass(frozen=True, kw_only=True)
class Fp8LinearMethod(QuantizeMethodBase):
    """`weight` e4m3 ``[out, in]``; `weight_scale` float32, which after loading is ``[out, groups of inputs]``.

    Args:
        scales: what the checkpoint has a scale for: each part of a fused layer, each row, or each block.
        block: rows and inputs of a block.
        activations: rounded to e4m3 by each token's own scale, by one for each `block[1]` inputs of a token, or by a
            stored one (`input_scale`; of fused parts the largest); None leaves them.
        at_load: the checkpoint has plain weights.
    """

    scales: Literal["tensor", "row", "block"] = "row"
    block: tuple[int, int] = (128, 128)
    activations: Literal["token", "group", "static"] | None = None
    at_load: bool = False

    def __str__(self) -> str:
        of = f"block of {self.block[0]}×{self.block[1]}" if self.scales == "block" else self.scales
        activations = "" if self.activations is None else f", activations fp8 ({self.activations})"
        return f"fp8, a scale a {of}{activations}"

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
        rows, width, parts = sum(output_partition_sizes), input_size_per_partition, len(output_partition_sizes)
        attrs = {**extra_weight_attrs, "output_dim": 0}
        stored = {**attrs, "output_step": PER_PART, "part_sizes": output_partition_sizes}
        if self.scales == "tensor":
            add_parameter(layer, "weight_scale", (parts,), torch.float32, stored)
        elif self.scales == "row":
            add_parameter(layer, "weight_scale", (rows, 1), torch.float32, attrs)
        else:
            tall, wide = self.block
            for size in output_partition_sizes:
                refuse_cut_groups(layer, size, size * output_size // rows, tall, "outputs")
            refuse_cut_groups(layer, width, input_size, wide, "inputs")
            shape = (sum(-(-size // tall) for size in output_partition_sizes), -(-width // wide))
            add_parameter(layer, "weight_scale", shape, torch.float32, stored | {"output_step": tall}, input_dim=1)
        if self.activations == "static":
            add_parameter(layer, "input_scale", (parts,), torch.float32, stored)
        if self.at_load:
            attrs["weight_loader"] = quantizing_loader(layer, fp8_rows)
        add_parameter(layer, "weight", (rows, width), torch.float8_e4m3fn, attrs, input_dim=1)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.scales != "row":
            scale = per_row(layer.weight_scale)
            replace_parameter(layer, "weight_scale", scale if scale.dim() == 2 else scale.unsqueeze(1))
        if self.activations == "static":
            replace_parameter(layer, "input_scale", layer.input_scale.max())

    def bytes_added(self, layer: Any) -> int:
        scale: torch.Tensor = layer.weight_scale
        by_row = 0 if self.scales == "row" else len(layer.weight) * math.prod(scale.shape[1:]) - scale.numel()
        static = 1 - layer.input_scale.numel() if self.activations == "static" else 0
        return int(by_row + static) * torch.float32.itemsize

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(layer)(x, bias)

    def product(self, layer: Any) -> Product:
        tensors, group = {"weight": layer.weight, "scale": layer.weight_scale}, self.block[1]
        if self.activations is None:
            return Product(linear_fp8, tensors, {"group_size": group})
        if self.activations == "static":
            tensors["input_scale"] = layer.input_scale
        by = group if self.activations == "group" else None
        return Product(linear_fp8_fp8, tensors, {"group_size": group, "input_group": by})


def fp8_rows(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """``weight ≈ e4m3 * scale``, ``scale = max|row| / 448``; rows of zeros get scale 1."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1, keepdim=True) / FP8_MAX
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return {"weight": to_fp8(wide / scale), "weight_scale": scale}


class Fp8AtLoadConfig(QuantizationConfig):
    """Quantizes every linear layer while loading, row by row; activations, embeddings, heads and routers stay plain."""

    name = "fp8"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Fp8AtLoadConfig:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        return None if is_left_plain(layer) else Fp8LinearMethod(at_load=True)


class Fp8DynamicConfig(Fp8AtLoadConfig):
    """As `Fp8AtLoadConfig`, and activations are rounded to e4m3 as they come, by each token's own scale: both sides of
    a product are what fp8 tensor cores multiply."""

    name = "fp8_dynamic"
    rounds_activations = True

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        return None if is_left_plain(layer) else Fp8LinearMethod(at_load=True, activations="token")


class Fp8Config(CheckpointConfig):
    """`quant_method` "fp8": a scale for each matrix (`weight_scale`) or each block (`weight_scale_inv`).

    Without a `quantization_config`, this is how "fp8" is asked for while loading (`Fp8AtLoadConfig`).
    """

    name = "fp8"
    markers = ("weight_scale_inv", "weight_scale")

    def __init__(self, method: Fp8LinearMethod, skipped: tuple[str, ...]) -> None:
        super().__init__()
        self.method = method
        self.skipped = skipped

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizationConfig:
        if "quant_method" not in config:
            return Fp8AtLoadConfig()
        fields = Fields(config)
        fields.choice("fmt", ("e4m3",), "e4m3")
        scheme = fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
        block = fields.counts("weight_block_size", 2)
        skipped = (*fields.names("modules_to_not_convert"), *fields.names("ignored_layers"))
        fields.absent("scale_fmt", "activation scales rounded to powers of two are not implemented")
        fields.done("is_checkpoint_fp8_serialized", "dequantize")
        if block is None:
            activations: Any = "token" if scheme == "dynamic" else "static"
            return cls(Fp8LinearMethod(scales="tensor", activations=activations), skipped)
        if scheme == "static":
            raise fields.refused("activation_scheme", "dynamic, where weights have blocks", scheme)
        return cls(Fp8LinearMethod(scales="block", block=(block[0], block[1]), activations="group"), skipped)

    def method_of_quantized(self, name: str) -> QuantizeMethodBase:
        return self.method

    def is_listed_plain(self, name: str) -> bool:
        return matches_any(name, self.skipped)

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight_scale" if parameter == "weight_scale_inv" else parameter, tensor
