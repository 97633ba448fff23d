"""The native version of every op, and where each can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bestiary.nn.ops.registry import Implementation, Target

from . import _library, adapters, between, codes, experts, products

_PRIORITY = 20


def _why_not(target: Target) -> str | None:
    if target.device != "cpu":
        return "for CPUs"
    if reason := _library.why_not():
        return reason
    return None if target.dtype is torch.float32 else "activations must be float32; weights may be anything"


def _native(function: Callable[..., Any], pack: Callable[..., Any] | None = None) -> Implementation[..., Any]:
    return Implementation("native", function, _why_not, _PRIORITY, pack)


def _why_not_deterministic(target: Target) -> str | None:
    return _why_not(target) or (None if target.deterministic else "for deterministic mode")


def _why_not_by_shape(target: Target) -> str | None:
    return _why_not(target) or ("not in deterministic mode" if target.deterministic else None)


LINEAR = Implementation("native", products.linear, _why_not_by_shape, _PRIORITY, products.pack_plain)
LINEAR_DETERMINISTIC = Implementation(
    "native_deterministic", products.linear_fixed, _why_not_deterministic, _PRIORITY, products.pack_plain
)
EMBEDDING = _native(products.embedding)
LINEAR_GGUF = _native(products.gguf, products.pack_gguf)
EMBEDDING_GGUF = _native(products.gguf_rows)
RMS_NORM = _native(between.rms_norm)
FUSED_ADD_RMS_NORM = _native(between.fused_add_rms_norm)
GEMMA_RMS_NORM = _native(between.gemma_rms_norm)
LAYER_NORM = _native(between.layer_norm)
SILU_AND_MUL = _native(between.silu_and_mul)
GELU_AND_MUL = _native(between.gelu_and_mul)
GELU = _native(between.gelu)
QUICK_GELU = _native(between.quick_gelu)
RELU2 = _native(between.relu2)
ROTARY_ANGLES = _native(between.rotary_angles)
BEST_TOKENS = _native(between.best_tokens)
LINEAR_INT8 = _native(codes.int8, codes.pack_int8)
LINEAR_INT4 = _native(codes.int4, codes.pack_int4)
LINEAR_UINT8 = _native(codes.uint8, codes.pack_uint8)
TOPK_ROUTING = _native(experts.routing)
FUSED_EXPERTS = _native(experts.experts, experts.pack_experts)
ADD_LORA = _native(adapters.add_lora)
ADD_LORA_EMBEDDING = _native(adapters.add_lora_embedding)
ROTARY_EMBEDDING = _native(between.rotary_embedding)
