"""Activations between two products: ``act(gate) * up`` in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import Variant

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _silu_and_mul(x, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row's strip of `BLOCK` channels; fp32 inside, silu rounded to the dtype as the reference does."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = at < width
    gate = tl.load(x + row * 2 * width + at, mask=within).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, mask=within).to(tl.float32)
    silu = (gate / (1 + tl.exp(-gate))).to(x.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + at, (silu * up).to(out.dtype.element_ty), mask=within)


def silu_and_mul(x: Tensor) -> Tensor:
    """As `bestiary.nn.ops.activation.silu_and_mul`."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if rows and width:
        _silu_and_mul[rows, triton.cdiv(width, _BLOCK)](x.contiguous(), out, width, BLOCK=_BLOCK)
    return out


def variants() -> Iterator[Variant]:
    for dtype in ("*bf16", "*fp16", "*fp32"):
        yield Variant(_silu_and_mul, {"x": dtype, "out": dtype, "width": "i32"}, {"BLOCK": _BLOCK})
