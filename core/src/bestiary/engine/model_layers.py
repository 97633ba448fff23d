"""What a built model's layers say of themselves: which attend, what they keep, and the tensors that keep it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bestiary.nn.attention.backend import KVCacheSpec
from bestiary.nn.attention.base import AttentionLayerBase
from bestiary.nn.prompt import PromptDependent
from bestiary.nn.zeros import untouched_zeros


def attention_layers(model: nn.Module) -> dict[str, AttentionLayerBase]:
    """The model's attention layers, of every kind, by full name, in definition order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, AttentionLayerBase)}


def kv_cache_specs(model: nn.Module) -> dict[str, KVCacheSpec]:
    """What each layer keeps for every token: asked of the model, never read from its configuration."""
    specs = {name: layer.get_kv_cache_spec() for name, layer in attention_layers(model).items()}
    return {name: spec for name, spec in specs.items() if spec is not None}


def prompt_salt(model: nn.Module) -> Callable[[int], str] | None:
    """Length of a prompt → what the model's layers say of it; None where no layer's keys or values depend on it."""
    layers = [module for module in model.modules() if isinstance(module, PromptDependent)]
    return (lambda length: ",".join(str(layer.cache_salt(length)) for layer in layers)) if layers else None


def make_kv_caches(model: nn.Module, num_blocks: int, block_size: int, where: torch.device) -> dict[str, torch.Tensor]:
    """Layer name → blocks, in the shape that its backend reads."""
    caches = {}
    layers = attention_layers(model)
    for name, spec in kv_cache_specs(model).items():
        shape = layers[name].bound_backend().cache_shape(spec, num_blocks, block_size)
        caches[name] = untouched_zeros(tuple(shape), spec.dtype, where)
    return caches
