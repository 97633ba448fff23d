"""What other libraries' paged kernels take, as far as backends here ask them: plain decoders, one dtype throughout."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.api.errors import UsageError

from .backend import AttentionSpec, AttentionType

DTYPES = (torch.bfloat16, torch.float16)
_CAPABILITY = (8, 0)


def why_not_plain(device: str, spec: AttentionSpec) -> str | None:
    """Why a layer is not one of a plain decoder on an NVIDIA GPU; the GPU is asked only where the device is one."""
    if device != "cuda" or torch.version.hip is not None:
        return "for CUDA"
    if spec.attn_type is not AttentionType.DECODER:
        return "for decoders' own attention"
    if spec.alibi_slopes is not None:
        return "has no ALiBi with a model's own slopes"
    if spec.has_sinks:
        return "has no sinks"
    if spec.cache_dtype not in (None, *DTYPES):
        return "reads caches in bfloat16 and float16"
    if torch.cuda.get_device_capability() < _CAPABILITY:
        return "for GPUs of compute capability 8.0 and above"
    return None


def keys_and_values(kv_cache: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the pages, ``[blocks, block_size, num_kv_heads, head_size]`` each, of the same strides.

    Raises:
        UsageError: they are kept in another dtype than the queries', which these kernels do not convert.
    """
    if kv_cache.dtype is not query.dtype:
        raise UsageError(
            "this attention backend reads a cache in the queries' dtype only", field="kv_cache_dtype",
            value=str(kv_cache.dtype), limit=str(query.dtype), fix="kv_cache_dtype=auto, or another attention_backend",
        )  # fmt: skip
    return kv_cache[:, :, 0], kv_cache[:, :, 1]


def keys_before(spec: AttentionSpec) -> int:
    """How many keys before its own a query sees, −1 where all: as these libraries count a window."""
    return -1 if spec.sliding_window is None else spec.sliding_window - 1
