"""Heads before attention, in one launch: norms of queries and keys, rotary embedding, and the write to the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops.heads import QKNorm
from bestiary.nn.ops.heads import qk_norm_rope_cache as by_parts

from .available import why_not_fp8
from .cache import rounded, saturate
from .sizes import cdiv, power_of_2
from .variants import ROUNDED, Variant

_NO_NORM, _RMS, _OFFSET = 0, 1, 2


@triton.jit  # type: ignore[untyped-decorator]
def _normed(x, factor, weight, at, inside, kind: tl.constexpr, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x * factor * weight`` in fp32, rounded as `bestiary.nn.ops.norm` rounds to the dtype `kind`."""
    x = x * factor
    if NORM == 1:
        x = x.to(kind).to(tl.float32)
    if weight is not None:
        scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        x *= scale + 1.0 if NORM == 2 else scale
    return x.to(kind).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    x, weight, cos, sin, token, head, channel, inside, stride, eps,
    HEAD: tl.constexpr, ROTARY: tl.constexpr, NEOX: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, normalised and turned, in fp32: ``x * cos + partner * sin`` in the angles' dtype,
    rounded product by product as the reference does, then to the dtype of `x`. Channels beyond ROTARY stay."""
    kind: tl.constexpr = x.dtype.element_ty
    angle: tl.constexpr = cos.dtype.element_ty
    turns = channel < ROTARY
    partner = (channel + ROTARY // 2) % ROTARY if NEOX else channel ^ 1
    row = x + token * stride + head * HEAD
    own = tl.load(row + channel, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row + partner, mask=inside & turns, other=0.0).to(tl.float32)
    if NORM > 0:
        factor = 1.0 / tl.sqrt(tl.sum(own * own, 1)[:, None] / HEAD + eps)
        own = _normed(own, factor, weight, channel, channel < HEAD, kind, NORM)
        other = _normed(other, factor, weight, partner, turns, kind, NORM)
    c = tl.load(cos + token * ROTARY + channel, mask=turns, other=0.0).to(tl.float32)
    s = tl.load(sin + token * ROTARY + channel, mask=turns, other=0.0).to(tl.float32)
    both = (own * c).to(angle).to(tl.float32) + (other * s).to(angle).to(tl.float32)
    return tl.where(turns, both.to(angle).to(kind).to(tl.float32), own)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    query, key, value, query_out, key_out, cache, slots, cos, sin, query_weight, key_weight,
    query_stride, key_stride, value_stride, block_stride, token_stride, value_offset, eps, k_scale, v_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, ROTARY: tl.constexpr, NEOX: tl.constexpr,
    NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr, SATURATE: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """ROWS heads of one token: of the query, behind its heads of the key, and where there is a cache of the value."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, PADDED)[None, :]
    kind: tl.constexpr = query.dtype.element_ty
    of_query: tl.constexpr = (HEADS + ROWS - 1) // ROWS
    of_key: tl.constexpr = (KV_HEADS + ROWS - 1) // ROWS
    head = group * ROWS + tl.arange(0, ROWS)[:, None]
    if group < of_query:
        inside = (head < HEADS) & (channel < HEAD)
        x = _turned(
            query, query_weight, cos, sin, token, head, channel, inside, query_stride, eps, HEAD, ROTARY, NEOX, NORM
        )
        tl.store(query_out + (token * HEADS + head) * HEAD + channel, (x * k_scale).to(kind), mask=inside)
    else:
        if KV_HEADS > 0:
            of_value = group >= of_query + of_key
            head -= (of_query + tl.where(of_value, of_key, 0)) * ROWS
            inside = (head < KV_HEADS) & (channel < HEAD)
            if cache is None:
                x = _turned(
                    key, key_weight, cos, sin, token, head, channel, inside, key_stride, eps, HEAD, ROTARY, NEOX, NORM
                )
                tl.store(key_out + (token * KV_HEADS + head) * HEAD + channel, x.to(kind), mask=inside)
            else:
                slot = tl.load(slots + token)
                to = cache + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride + head * HEAD
                if of_value:
                    x = tl.load(value + token * value_stride + head * HEAD + channel, mask=inside, other=0.0)
                    x = (x.to(tl.float32) / v_scale).to(kind).to(tl.float32)
                    tl.store(to + value_offset + channel, rounded(x, cache, SATURATE), mask=inside)
                else:
                    x = _turned(
                        key, key_weight, cos, sin, token, head, channel, inside, key_stride, eps, HEAD, ROTARY, NEOX,
                        NORM,
                    )  # fmt: skip
                    x = (x / k_scale).to(kind).to(tl.float32)
                    tl.store(to + channel, rounded(x, cache, SATURATE), mask=inside)


def rotary_embedding(
    query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor | None]:
    """As `bestiary.nn.ops.rotary.rotary_embedding`. Queries and keys may be slices of wider rows."""
    return qk_norm_rope(query, key, cos, sin, head_size, is_neox_style, None)


def qk_norm_rope(
    query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool,
    norm: QKNorm | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `bestiary.nn.ops.heads.qk_norm_rope`. Queries and keys may be slices of wider rows."""
    query, key = _rows(query), None if key is None else _rows(key)
    query_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key_out = None if key is None else torch.empty(key.shape, dtype=key.dtype, device=key.device)
    heads, kv_heads = query.shape[1] // head_size, 0 if key is None else key.shape[1] // head_size
    _launch(
        (query, key, None, query_out, key_out, None, None), cos, sin, norm, (0, 0, 0), (1.0, 1.0),
        HEADS=heads, KV_HEADS=kv_heads, HEAD=head_size, NEOX=is_neox_style, BLOCK_SIZE=1, SATURATE=0.0,
    )  # fmt: skip
    return query_out, key_out


def qk_norm_rope_cache(
    query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor, cos: Tensor, sin: Tensor,
    is_neox_style: bool, norm: QKNorm | None, k_scale: float, v_scale: float,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.heads.qk_norm_rope_cache`, and by it where the GPU does not know the cache's dtype. Queries,
    keys and values may be slices of wider rows. Reads each once, and writes it once."""
    if why_not_fp8(kv_cache.device.type, kv_cache.dtype):
        return by_parts.reference(query, key, value, kv_cache, slots, cos, sin, is_neox_style, norm, k_scale, v_scale)
    query, key, value = _rows(query), _rows(key), _rows(value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    kv_heads, size = kv_cache.shape[-2:]
    _launch(
        (query, key, value, out, None, kv_cache, slots), cos, sin, norm, kv_cache.stride()[:3], (k_scale, v_scale),
        HEADS=query.shape[1] // size, KV_HEADS=kv_heads, HEAD=size, NEOX=is_neox_style,
        BLOCK_SIZE=kv_cache.shape[1], SATURATE=saturate(kv_cache.dtype),
    )  # fmt: skip
    return out


def _launch(
    tensors: tuple[Tensor | None, ...], cos: Tensor, sin: Tensor, norm: QKNorm | None,
    cache_strides: tuple[int, ...], scales: tuple[float, float], **constants: Any,
) -> None:  # fmt: skip
    """`tensors` are the kernel's first seven."""
    query, cached = tensors[0], tensors[5] is not None
    if query is None or not len(query):
        return
    rows, padded = _tile(constants["HEAD"])
    groups = cdiv(constants["HEADS"], rows) + cdiv(constants["KV_HEADS"], rows) * (2 if cached else 1)
    weights = (None, None) if norm is None else (norm.query_weight, norm.key_weight)
    strides = [0 if each is None else each.stride(0) for each in tensors[:3]]
    _rotate[len(query), groups](
        *tensors, cos.contiguous(), sin.contiguous(), *weights, *strides, *cache_strides,
        0.0 if norm is None else norm.eps, *scales,
        **constants, ROTARY=cos.shape[-1], NORM=_kind(norm), ROWS=rows, PADDED=padded, num_warps=1,
        **ROUNDED,
    )  # fmt: skip


def _kind(norm: QKNorm | None) -> int:
    return _NO_NORM if norm is None else _OFFSET if norm.weight_is_offset else _RMS


def _tile(head_size: int) -> tuple[int, int]:
    """Heads of a program, which has one warp, and their channels: about 16 numbers a thread."""
    padded = power_of_2(head_size)
    return max(1, 512 // padded), padded


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


_STRIDES = ("query_stride", "key_stride", "value_stride", "block_stride", "token_stride", "value_offset")
_ROWS = ("query", "key", "value", "query_out", "key_out", "query_weight", "key_weight")


def variants() -> Iterator[Variant]:
    kinds = [("*bf16", "*bf16"), ("*bf16", "*fp32"), ("*fp16", "*fp16"), ("*fp32", "*fp32")]
    shapes = [(128, 128, True), (64, 64, False), (80, 32, True)]
    caches = [("", _NO_NORM, 0.0), ("", _RMS, 0.0), ("same", _NO_NORM, 0.0), ("same", _RMS, 0.0)]
    chosen = [(rows, angles, caches[(at + at // 4) % 4], shapes[at % 3]) for at, (rows, angles) in enumerate(3 * kinds)]
    chosen += [("*bf16", "*bf16", kept, shapes[0]) for kept in (
        *caches, ("same", _OFFSET, 0.0), ("*fp8e4nv", _RMS, 448.0), ("*fp8e5", _NO_NORM, 57344.0),
    )] + [("*bf16", "*bf16", ("same", _RMS, 0.0), (256, 256, True))]  # fmt: skip
    for rows, angles, (cache, norm, most), (head, rotary, neox) in chosen:
        signature = {**dict.fromkeys(_ROWS, rows), "cache": rows if cache == "same" else cache, "slots": "*i64"}
        signature |= {"cos": angles, "sin": angles, **dict.fromkeys(_STRIDES, "i32")}
        signature |= dict.fromkeys(("eps", "k_scale", "v_scale"), "fp32")
        absent = ["key_out"] if cache else ["value", "cache", "slots"]
        absent += ["query_weight", "key_weight"] if norm == _NO_NORM else []
        many, padded = _tile(head)
        constants = {
            "HEADS": 32, "KV_HEADS": 8, "HEAD": head, "ROTARY": rotary, "NEOX": neox, "NORM": norm, "BLOCK_SIZE": 16,
            "SATURATE": most, "ROWS": many, "PADDED": padded, **dict.fromkeys(absent),
        }  # fmt: skip
        since = 89 if most else 80
        yield Variant(_rotate, signature, constants, 1, since=since, options=ROUNDED, divisible=_STRIDES)
