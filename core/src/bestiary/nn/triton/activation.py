"""Activations, and those between two products: ``act(gate) * up`` in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv
from .variants import Variant

_BLOCK = 1024
SILU, GELU, GELU_TANH, QUICK_GELU, RELU2 = range(5)


@triton.jit  # type: ignore[untyped-decorator]
def activated(x, KIND: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """An activation of fp32 numbers that came in DTYPE; KIND is one of this module's constants."""
    if KIND == 0:
        return x / (1 + tl.exp(-x))
    if KIND == 1:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    if KIND == 2:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1 + tl.exp(-2 * inner))  # (1 + tanh y) / 2 is the logistic function of 2 y
    if KIND == 3:
        share = 1 / (1 + tl.exp(-(1.702 * x).to(DTYPE).to(tl.float32)))
        return x * share.to(DTYPE).to(tl.float32)
    positive = tl.maximum(x, 0.0)
    return positive * positive


@triton.jit  # type: ignore[untyped-decorator]
def _activate(  # type: ignore[no-untyped-def]
    x, out, width, stride, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row's strip of `BLOCK` channels; fp32 inside, the activation rounded as the reference rounds it."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = at < width
    value = activated(tl.load(x + row * stride + at, mask=within, other=0.0).to(tl.float32), KIND, x.dtype.element_ty)
    if GATED:
        up = tl.load(x + row * stride + width + at, mask=within, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=within)


def silu_and_mul(x: Tensor) -> Tensor:
    """As `bestiary.nn.ops.activation.silu_and_mul`."""
    return _launch(x, SILU, gated=True)


def gelu_and_mul(x: Tensor, approximate: str = "none") -> Tensor:
    """As `bestiary.nn.ops.activation.gelu_and_mul`."""
    return _launch(x, GELU_TANH if approximate == "tanh" else GELU, gated=True)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """As `bestiary.nn.ops.activation.gelu`."""
    return _launch(x, GELU_TANH if approximate == "tanh" else GELU, gated=False)


def quick_gelu(x: Tensor) -> Tensor:
    """As `bestiary.nn.ops.activation.quick_gelu`."""
    return _launch(x, QUICK_GELU, gated=False)


def relu2(x: Tensor) -> Tensor:
    """As `bestiary.nn.ops.activation.relu2`."""
    return _launch(x, RELU2, gated=False)


def _launch(x: Tensor, kind: int, *, gated: bool) -> Tensor:
    width = x.shape[-1] // 2 if gated else x.shape[-1]
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if out.numel():
        if x.dim() != 2 or x.stride(1) != 1:
            x = x.contiguous().view(-1, x.shape[-1])
        _activate[len(x), cdiv(width, _BLOCK)](
            x, out, width, x.stride(0), KIND=kind, GATED=gated, BLOCK=_BLOCK
        )  # fmt: skip
    return out


def variants() -> Iterator[Variant]:
    for dtype in ("*bf16", "*fp16", "*fp32"):
        for kind, gated in (
            (SILU, True),
            (GELU, True),
            (GELU_TANH, True),
            (GELU, False),
            (QUICK_GELU, False),
            (RELU2, False),
        ):
            signature = {"x": dtype, "out": dtype, "width": "i32", "stride": "i32"}
            constants = {"KIND": kind, "GATED": gated, "BLOCK": _BLOCK}
            yield Variant(_activate, signature, constants, divisible=("width", "stride"))
