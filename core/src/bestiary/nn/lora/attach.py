"""`attach`: one walk over a finished model that gives every layer its slots, and the slots of the whole model.

It comes after `finish`, when each layer has the method it will keep (a packed head, a quantized layer), and puts itself
before that method; so it needs nothing of a model file, and a model without adapters is untouched. Experts keep their
methods, since they see picked rows; `FusedMoE` adds their adapters itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.config import LoRAConfig
from bestiary.nn.embedding import VocabParallelEmbedding
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.moe.layer import FusedMoE
from bestiary.nn.weights import WeightsMapper

from .methods import LoRAEmbeddingMethod, LoRAMethod
from .model_slots import AdapterSlots, is_embedding
from .prepare import shard_sizes, width
from .slots import ExpertSlots, LayerSlots


def attach(
    model: nn.Module, config: LoRAConfig, device: torch.device, mappers: Sequence[WeightsMapper] = ()
) -> AdapterSlots:
    """Give a finished model slots for adapters, all of them empty.

    Args:
        device: where the slots lie; "meta" to know what they would take. mappers: renames that come before the
            class's own, of an alias.
    """
    layers = {name: layer for name, layer in model.named_modules() if _can_have(model, name, layer)}
    slots: dict[tuple[str, str], LayerSlots] = {}
    for name, layer in layers.items():
        give = _give_experts if isinstance(layer, FusedMoE) else _give_layer
        slots |= {(name, stack): made for stack, made in give(name, layer, config, device).items()}
    return AdapterSlots(model, layers, slots, config.max_lora_rank, mappers)


def _give_layer(name: str, layer: Any, config: LoRAConfig, device: torch.device) -> dict[str, LayerSlots]:
    """Slots for a linear layer, an embedding or a head, and the method that reads them."""
    count, rank, sizes, inputs = config.max_loras, config.max_lora_rank, shard_sizes(layer), width(layer)
    a: tuple[int, ...] = (count, len(sizes), rank, inputs)
    b = (count, sum(sizes), rank)
    if is_embedding(layer):
        a, b, sizes = (count, *sizes, rank), (count, inputs, rank), [inputs]
    made = LayerSlots(name, a, b, sizes, layer.params_dtype, device)
    method = LoRAEmbeddingMethod if is_embedding(layer) else LoRAMethod
    layer.quant_method = method(layer.quant_method, made)
    return {"": made}


def _give_experts(name: str, layer: FusedMoE, config: LoRAConfig, device: torch.device) -> dict[str, LayerSlots]:
    """Slots for this rank's experts: those of one adapter lie together."""
    made = []
    for layers in (stack.layers for stack in layer.stacks):
        sizes, inputs, dtype = shard_sizes(layers[0]), width(layers[0]), layers[0].params_dtype
        a = (config.max_loras, len(layers), len(sizes), config.max_lora_rank, inputs)
        b = (config.max_loras, len(layers), sum(sizes), config.max_lora_rank)
        made.append(LayerSlots(name, a, b, sizes, dtype, device))
    layer.adapter_slots = ExpertSlots(*made)
    for each in made:
        layer.keep_with_experts(each.a, 1)
        layer.keep_with_experts(each.b, 1)
    return dict(zip(("w13", "w2"), made, strict=True))


def _can_have(model: nn.Module, name: str, layer: nn.Module) -> bool:
    skipped = tuple(getattr(model, "lora_skip_prefixes", ()))
    absorbed = getattr(layer, "is_absorbed", False)  # latent attention reads its weight, and never calls it
    kinds = LinearBase | VocabParallelEmbedding | FusedMoE
    return isinstance(layer, kinds) and not absorbed and not name.startswith(skipped)
