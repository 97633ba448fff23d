"""What a built model is asked, and what it is given before it runs: a backend for attention, slots for adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.conformance import supports_lora
from bestiary.api.errors import ModelError
from bestiary.nn.attention.backend import AttentionType
from bestiary.nn.attention.choice import choose_backend
from bestiary.nn.logits import LogitsProcessor
from bestiary.nn.lora import AdapterSlots, attach
from bestiary.nn.ops.registry import Target

from .loader.alias import AppliedAlias
from .model_layers import attention_layers


def target_of(config: VllmConfig) -> Target:
    """What ops and kernels are chosen for."""
    return Target(config.device_config.device, config.model_config.dtype, config.model_config.deterministic)


def bind_attention(model: nn.Module, config: VllmConfig, offered: Mapping[str, Any]) -> None:
    """Give every attention layer the one backend that runs them all; those that were made with one keep theirs."""
    layers = attention_layers(model)
    crossing = [name for name, layer in layers.items() if layer.spec.attn_type is AttentionType.ENCODER_DECODER]
    if crossing:
        raise ModelError(
            "this engine runs decoders: it has no steps for an encoder whose output a decoder attends to",
            code="UNSUPPORTED_LAYER", field=crossing[0], value=AttentionType.ENCODER_DECODER.value,
        )  # fmt: skip
    model_config = config.model_config
    backends = {name: make() for name, make in offered.items()}
    backend = choose_backend(
        config.op_config.attention_backend,
        config.device_config.device,
        [spec for layer in layers.values() for spec in (layer.spec, *layer.more_specs)],
        backends,
        dtype=model_config.dtype,
        deterministic=model_config.deterministic,
    )
    for layer in layers.values():
        layer.backend = layer.backend or backend


def vocab_size(model: nn.Module, config: VllmConfig) -> int:
    """Width of the logits, asked of the model's first `LogitsProcessor` (a draft head's comes later)."""
    found = [module.org_vocab_size for module in model.modules() if isinstance(module, LogitsProcessor)]
    return found[0] if found else int(config.model_config.hf_text_config.vocab_size)


def check_lora(model: nn.Module, config: VllmConfig) -> None:
    """Refuse adapters where they cannot be. For models just built.

    Raises:
        ModelError: the class does not claim that adapters fit it.
    """
    if config.lora_config is not None and not supports_lora(model):
        raise ModelError(
            f"{type(model).__name__} does not say that adapters fit it", code="LORA_UNSUPPORTED",
            field=config.model_config.architecture, limit="a class that claims SupportsLoRA",
            fix="without enable_lora and --lora; or its author: claim SupportsLoRA",
        )  # fmt: skip


def adapter_slots(
    model: nn.Module, config: VllmConfig, alias: AppliedAlias | None, device: str | None = None
) -> AdapterSlots | None:
    """Slots for adapters in a finished model, on its device or on `device`; None where none are wanted. The renames of
    an `alias` hold for adapters too."""
    if config.lora_config is None:
        return None
    mappers = [] if alias is None else [alias.mapper()]
    return attach(model, config.lora_config, torch.device(device or config.device_config.device), mappers)
