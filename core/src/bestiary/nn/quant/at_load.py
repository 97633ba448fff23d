"""Quantizing while loading: a layer's `weight` takes plain tensors and fills what the layer keeps instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.embedding import VocabParallelEmbedding
from bestiary.nn.moe.gate import GateLinear
from bestiary.nn.weights.fill import ShardId, WeightLoader

Quantize = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
"""``[out, in]`` → the layer's parameters by name. Called with whole checkpoint tensors, before ranks take their share,
so that every rank rounds alike."""


def is_left_plain(layer: nn.Module) -> bool:
    """Embeddings and heads, whose rows are looked up or tied, and routers, where an error picks another expert."""
    return isinstance(layer, VocabParallelEmbedding | GateLinear)


def quantizing_loader(layer: Any, quantize: Quantize) -> WeightLoader:
    """A `weight_loader` that quantizes a checkpoint tensor, or a part of a fused layer, and fills the layer with it."""

    def load(param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
        if not loaded_weight.is_floating_point() or loaded_weight.dim() != 2:
            dtype = str(loaded_weight.dtype).removeprefix("torch.")
            raise WeightsMismatch(
                f"only plain matrices are quantized while loading, this is {dtype} {list(loaded_weight.shape)}",
                limit="two dimensions of floating-point numbers", value=dtype,
            )  # fmt: skip
        for name, part in quantize(loaded_weight).items():
            layer.weight_loader(getattr(layer, name), part, shard_id)

    return load
