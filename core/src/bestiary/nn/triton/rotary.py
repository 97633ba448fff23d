"""Rotary embedding: queries and keys of a step turned in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import Variant


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    x, out, cos, sin, token, head, stride,
    HEAD: tl.constexpr, ROTARY: tl.constexpr, NEOX: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One head of one token: ``x * cos + partner * sin`` in the angles' dtype, rounded product by product as the
    reference does, then to the dtype of `x`. Channels beyond ROTARY are copied."""
    channel = tl.arange(0, PADDED)
    inside = channel < HEAD
    turned = channel < ROTARY
    partner = (channel + ROTARY // 2) % ROTARY if NEOX else channel ^ 1
    row = x + token * stride + head * HEAD
    own = tl.load(row + channel, mask=inside, other=0.0)
    other = tl.load(row + partner, mask=turned, other=0.0)
    c = tl.load(cos + token * ROTARY + channel, mask=turned, other=0.0)
    s = tl.load(sin + token * ROTARY + channel, mask=turned, other=0.0)
    kind: tl.constexpr = cos.dtype.element_ty
    first = (own.to(tl.float32) * c.to(tl.float32)).to(kind).to(tl.float32)
    second = (other.to(tl.float32) * s.to(tl.float32)).to(kind).to(tl.float32)
    result = (first + second).to(kind).to(out.dtype.element_ty)
    return channel, inside, tl.where(turned, result, own)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    query, key, query_out, key_out, cos, sin, query_stride, key_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, ROTARY: tl.constexpr, NEOX: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """One head of one token: of the query, or behind its heads of the key."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if head < HEADS:
        channel, inside, turned = _turn(
            query, query_out, cos, sin, token, head, query_stride, HEAD, ROTARY, NEOX, PADDED
        )
        tl.store(query_out + (token * HEADS + head) * HEAD + channel, turned, mask=inside)
    elif KV_HEADS > 0:
        head -= HEADS
        channel, inside, turned = _turn(key, key_out, cos, sin, token, head, key_stride, HEAD, ROTARY, NEOX, PADDED)
        tl.store(key_out + (token * KV_HEADS + head) * HEAD + channel, turned, mask=inside)


def rotary_embedding(
    query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor | None]:
    """As `bestiary.nn.ops.rotary.rotary_embedding`. Queries and keys may be slices of wider rows."""
    query, key = _rows(query), None if key is None else _rows(key)
    query_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key_out = None if key is None else torch.empty(key.shape, dtype=key.dtype, device=key.device)
    heads, kv_heads = query.shape[1] // head_size, 0 if key is None else key.shape[1] // head_size
    if len(query):
        _rotate[len(query), heads + kv_heads](
            query, key, query_out, key_out, cos.contiguous(), sin.contiguous(),
            query.stride(0), 0 if key is None else key.stride(0),
            HEADS=heads, KV_HEADS=kv_heads, HEAD=head_size, ROTARY=cos.shape[-1], NEOX=is_neox_style,
            PADDED=triton.next_power_of_2(head_size), num_warps=1,
        )  # fmt: skip
    return query_out, key_out


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def variants() -> Iterator[Variant]:
    for kind, angles in (("*bf16", "*bf16"), ("*bf16", "*fp32"), ("*fp16", "*fp16"), ("*fp32", "*fp32")):
        for head, rotary, neox in ((128, 128, True), (64, 64, False), (80, 32, True)):
            signature = dict.fromkeys(("query", "key", "query_out", "key_out"), kind)
            signature |= {"cos": angles, "sin": angles, "query_stride": "i32", "key_stride": "i32"}
            constants = {"HEADS": 32, "KV_HEADS": 8, "HEAD": head, "ROTARY": rotary, "NEOX": neox}
            constants["PADDED"] = triton.next_power_of_2(head)
            yield Variant(_rotate, signature, constants, 1, divisible=("query_stride", "key_stride"))
