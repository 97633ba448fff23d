"""int8 weights, quantized while loading: one scale per output row, activations untouched (W8A16).

``weight ≈ int8 * scale`` with ``scale = max|row| / 127``, rounded to nearest. The reference multiplies in the
activations' dtype and scales the result, so a product costs what the unquantized one does; what it saves is memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bestiary.nn.embedding import VocabParallelEmbedding
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.moe.gate import GateLinear
from bestiary.nn.weights.fill import ShardId, set_weight_attrs

from .base import QuantizationConfig, QuantizeMethodBase


class Int8Config(QuantizationConfig):
    """Quantizes every linear layer; embeddings, the head and routers stay as they are."""

    name = "int8"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int8Config:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        return None if isinstance(layer, VocabParallelEmbedding | GateLinear) else Int8LinearMethod()

    def why_not(self, device: str) -> str | None:
        return None


class Int8LinearMethod(QuantizeMethodBase):
    """`weight` int8 ``[out, in]``, `weight_scale` float32 ``[out]``."""

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
        rows = sum(output_partition_sizes)
        weight = torch.empty(rows, input_size_per_partition, dtype=torch.int8, device="meta")
        scale = torch.empty(rows, dtype=torch.float32, device="meta")
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))
        load = _quantizing_loader(layer)
        set_weight_attrs(layer.weight, {"output_dim": 0, "input_dim": 1, "weight_loader": load})  # type: ignore[arg-type]
        set_weight_attrs(layer.weight_scale, {"output_dim": 0})  # type: ignore[arg-type]

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight: Any = layer.weight
        scale: Any = layer.weight_scale
        out: torch.Tensor = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
        return out if bias is None else out + bias


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` → (int8 of the same shape, float32 scales ``[out]``); rows of zeros get scale 1."""
    scale = weight.float().abs().amax(dim=1) / 127.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(weight.float() / scale[:, None]).to(torch.int8), scale


def _quantizing_loader(layer: Any) -> Any:
    """A loader that quantizes a checkpoint tensor, or one shard of it, and fills weight and scales."""
    linear: LinearBase = layer

    def load(param: nn.Parameter, loaded: torch.Tensor, shard_id: ShardId = None) -> None:
        values, scale = quantize_rows(loaded)
        linear.weight_loader(param, values, shard_id)
        linear.weight_loader(layer.weight_scale, scale, shard_id)

    return load
