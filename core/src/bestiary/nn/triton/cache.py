"""The paged KV cache: keys and values of a step, written where they belong in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops.attention import write_kv_cache as by_torch

from .available import why_not_fp8
from .sizes import cdiv, power_of_2
from .variants import Variant


@triton.jit  # type: ignore[untyped-decorator]
def rounded(x, cache, SATURATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """`x` (fp32) in the cache's dtype; with SATURATE what is too large becomes that largest number, NaN stays NaN and
    infinity becomes NaN, as the reference's ``clamp + x * 0`` has it."""
    if SATURATE > 0:
        x = tl.minimum(tl.maximum(x, -SATURATE), SATURATE) + x * 0.0
    return x.to(cache.dtype.element_ty)


@triton.jit  # type: ignore[untyped-decorator]
def _write(  # type: ignore[no-untyped-def]
    cache, key, value, slots, width, block_stride, token_stride, value_offset, key_stride, value_stride,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr, SATURATE: tl.constexpr,
):  # fmt: skip
    """One token's keys and values, `BLOCK` channels of all its heads together."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    slot = tl.load(slots + token)
    to = cache + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride + at
    keys = tl.load(key + token * key_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, rounded(keys, cache, SATURATE), mask=inside)
    values = tl.load(value + token * value_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(to + value_offset, rounded(values, cache, SATURATE), mask=inside)


def write_kv_cache(kv_cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """As `bestiary.nn.ops.attention.write_kv_cache`, and by it where the GPU does not know the cache's dtype. Keys and
    values may be slices of wider rows."""
    tokens, heads, size = key.shape
    if why_not_fp8(kv_cache.device.type, kv_cache.dtype):
        by_torch.reference(kv_cache, key, value, slots)
        return
    key, value = _rows(key), _rows(value)
    width = heads * size
    if not tokens:
        return
    block = _block(width)
    _write[tokens, cdiv(width, block)](
        kv_cache, key, value, slots, width, kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2),
        key.stride(0), value.stride(0),
        BLOCK_SIZE=kv_cache.shape[1], BLOCK=block, SATURATE=saturate(kv_cache.dtype),
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """``[tokens, heads, head_size]`` whose heads lie side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _block(width: int) -> int:
    return int(min(1024, power_of_2(width)))


def saturate(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max) if dtype.itemsize == 1 else 0.0


_STRIDES = ("block_stride", "token_stride", "value_offset", "key_stride", "value_stride")


def variants() -> Iterator[Variant]:
    kinds = [("*bf16", "*bf16", 0.0), ("*fp16", "*fp16", 0.0), ("*fp32", "*fp32", 0.0)]
    kinds += [("*bf16", "*fp8e4nv", 448.0), ("*bf16", "*fp8e5", 57344.0)]
    for rows, cache, most in kinds:
        signature = {"cache": cache, "key": rows, "value": rows, "slots": "*i64", "width": "i32"}
        signature |= dict.fromkeys(_STRIDES, "i32")
        constants = {"BLOCK_SIZE": 16, "BLOCK": 1024, "SATURATE": most}
        yield Variant(_write, signature, constants, since=89 if most else 80, divisible=("width", *_STRIDES))
