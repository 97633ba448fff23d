"""The versions of ops that Triton kernels make, by name, without importing a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import torch

from bestiary.nn.ops.registry import Implementation, Target

from .available import why_not

PRIORITY = 20


def later(module: str, function: str, **fixed: Any) -> Callable[..., Any]:
    """A function of a module of this package that is imported when it is first called; with `fixed` arguments."""

    @cache
    def found() -> Callable[..., Any]:
        made: Callable[..., Any] = getattr(import_module(f"bestiary.nn.triton.{module}"), function)
        return made

    def call(*args: Any, **options: Any) -> Any:
        return found()(*args, **fixed, **options)

    call.__name__ = call.__qualname__ = function
    return call


def version(
    module: str, function: str, where: Callable[[Target], str | None] = why_not, priority: int = PRIORITY
) -> Implementation[..., Any]:
    """A version of an op called ``triton``."""
    return Implementation("triton", later(module, function), where, priority)


def exact_version(module: str, function: str) -> Implementation[..., Any]:
    """The version called ``triton_exact`` of a function whose tiles otherwise follow the number of rows."""
    return Implementation("triton_exact", later(module, function, exact=True), exact, PRIORITY)


def exact(target: Target) -> str | None:
    """For engines in which a row's bits must be its own; others take torch's product, which is faster."""
    return why_not(target) if target.deterministic else "it is slower, and meant for deterministic mode"


def varying(target: Target) -> str | None:
    """For engines in which a row's bits may depend on how many rows there are."""
    return "its tiles follow the number of rows" if target.deterministic else why_not(target)


RMS_NORM = version("norm", "rms_norm")
FUSED_ADD_RMS_NORM = version("norm", "fused_add_rms_norm")
GEMMA_RMS_NORM = version("norm", "gemma_rms_norm")
LAYER_NORM = version("norm", "layer_norm")
SILU_AND_MUL = version("activation", "silu_and_mul")
GELU_AND_MUL = version("activation", "gelu_and_mul")
GELU = version("activation", "gelu")
QUICK_GELU = version("activation", "quick_gelu")
RELU2 = version("activation", "relu2")
ROTARY_ANGLES = version("angles", "rotary_angles")
ROTARY_EMBEDDING = version("rotary", "rotary_embedding")
QK_NORM_ROPE = version("rotary", "qk_norm_rope")
QK_NORM_ROPE_CACHE = version("rotary", "qk_norm_rope_cache")
WRITE_KV_CACHE = version("cache", "write_kv_cache")
LINEAR = version("linear", "linear", exact)
LINEAR_OF_ONE = Implementation("triton_one_row", later("vector", "linear"), varying, PRIORITY)
TOPK_ROUTING = version("routing", "topk_routing")
FUSED_EXPERTS = version("moe", "fused_experts", varying)
GROUPED_EXPERTS = version("experts", "grouped_experts", varying)
ADD_LORA = version("lora_tiles", "add_lora", varying)
ADD_LORA_EMBEDDING = version("lora_tiles", "add_lora_embedding", varying)
BEST_TOKENS = version("sampling", "best_tokens")
DRAW_TOKENS = version("draws", "draw_tokens")
DRAW_FROM_PART = version("sampling", "draw_from_part")
PLACE_ROWS = version("step", "place_rows")


LINEAR_INT8_INT8 = version("int8", "linear_int8_int8")
LINEAR_CODEBOOK = version("grouped", "linear_codebook", varying)
LINEAR_GGUF = replace(version("dequant", "linear_gguf", varying), pack=later("planes", "pack_gguf"), reorders=True)
EMBEDDING_GGUF = version("planes", "embedding_gguf")
LINEAR_INT8 = version("grouped", "linear_int8", varying)
LINEAR_FP8 = version("grouped", "linear_fp8", varying)
LINEAR_INT4 = version("grouped", "linear_int4", varying)
LINEAR_UINT8 = version("grouped", "linear_uint8", varying)

EXACT_FUSED_EXPERTS = exact_version("moe", "fused_experts")
EXACT_GROUPED_EXPERTS = exact_version("experts", "grouped_experts")
EXACT_ADD_LORA = Implementation("triton_exact", later("lora", "add_lora"), exact, PRIORITY)
EXACT_ADD_LORA_EMBEDDING = Implementation("triton_exact", later("lora", "add_lora_embedding"), exact, PRIORITY)
EXACT_LINEAR_GGUF = replace(exact_version("dequant", "linear_gguf"), pack=LINEAR_GGUF.pack, reorders=True)
EXACT_LINEAR_INT8 = exact_version("grouped", "linear_int8")
EXACT_LINEAR_FP8 = exact_version("grouped", "linear_fp8")
EXACT_LINEAR_INT4 = exact_version("grouped", "linear_int4")
EXACT_LINEAR_UINT8 = exact_version("grouped", "linear_uint8")
EXACT_LINEAR_CODEBOOK = exact_version("grouped", "linear_codebook")


def _scaled_mm(target: Target) -> str | None:
    """The GPU is asked only where the target is one."""
    if target.device != "cuda":
        return "for CUDA"
    if target.dtype is not torch.bfloat16:
        return "for bfloat16"
    if torch.cuda.get_device_capability() < (9, 0):
        return "for GPUs of compute capability 9.0 and above"
    return varying(target)


SCALED_MM = Implementation("scaled_mm", later("fp8", "linear_fp8_fp8"), _scaled_mm, PRIORITY + 1)
LINEAR_FP8_FP8 = version("fp8_blocks", "linear_fp8_fp8", varying)
EXACT_LINEAR_FP8_FP8 = exact_version("fp8_blocks", "linear_fp8_fp8")
