"""One row times a matrix, which is all that a single sequence's decode step does: bound by reading the weights once.

A program has a few outputs and passes over their whole rows, each thread reading 16 bytes at a time, many of them at
once; sums are fp32, rounded once. More rows are torch's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv
from .variants import Variant

_COLUMNS, _STRIP, _WARPS = 8, 1024, 4
"""Outputs of a program and inputs of a step: 64 weights a thread are under way."""


@triton.jit  # type: ignore[untyped-decorator]
def _product_of_one(  # type: ignore[no-untyped-def]
    x, weight, bias, out, width, inner, weight_stride, COLUMNS: tl.constexpr, STRIP: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < width
    k = tl.arange(0, STRIP)
    rows = weight + column.to(tl.int64)[:, None] * weight_stride + k[None, :]
    sums = tl.zeros([COLUMNS, STRIP], tl.float32)
    for start in range(0, inner, STRIP):
        inside = k < inner - start
        there = within[:, None] & inside[None, :]
        right = tl.load(rows + start, mask=there, other=0.0, eviction_policy="evict_first").to(tl.float32)
        left = tl.load(x + start + k, mask=inside, other=0.0).to(tl.float32)
        sums += right * left[None, :]
    total = tl.sum(sums, 1)
    if bias is not None:
        total += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=within)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `bestiary.nn.ops.linear.linear`; of several rows by torch, and of what does not lie in whole 16 bytes."""
    width, inner = weight.shape
    apart = weight.stride(1) != 1 or weight.stride(0) * weight.element_size() % 16 or x.dtype is torch.float32
    if x.numel() != inner or apart or not width:
        return F.linear(x, weight, bias)
    row = x.reshape(inner).contiguous()
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    _product_of_one[(cdiv(width, _COLUMNS),)](
        row, weight, bias, out, width, inner, weight.stride(0), COLUMNS=_COLUMNS, STRIP=_STRIP, num_warps=_WARPS
    )
    return out


def variants() -> Iterator[Variant]:
    sizes = ("width", "inner", "weight_stride")
    for kind in ("*bf16", "*fp16"):
        signature = dict.fromkeys(("x", "weight", "bias", "out"), kind) | dict.fromkeys(sizes, "i32")
        for absent in ((), ("bias",)):
            constants: dict[str, object] = {"COLUMNS": _COLUMNS, "STRIP": _STRIP, **dict.fromkeys(absent)}
            yield Variant(_product_of_one, signature, constants, _WARPS, divisible=sizes)
