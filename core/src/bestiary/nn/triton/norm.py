"""Normalisations, a row a program; very wide rows pass twice, narrow ones (heads) several to a program.

Everything is computed in fp32 and rounded where the references round: what was normalised becomes the activations'
dtype before a weight multiplies it, but in Gemma's and in layer norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, power_of_2
from .variants import Variant

_WIDEST = 8192


@triton.jit
def _input(x, residual, added, start, row, at, inside, width, residual_stride):  # type: ignore[no-untyped-def]
    """Channels `at` of some rows in fp32; with a residual their sum, rounded, which is stored too."""
    value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + row * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
        tl.store(added + row * width + at, value.to(added.dtype.element_ty), mask=inside)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _output(value, mean, factor, scale, shift, kind: tl.constexpr, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """What `value` becomes, given a weight and a bias or None."""
    value = (value - mean) * factor if KIND == 2 else value * factor
    if KIND == 0:
        value = value.to(kind).to(tl.float32)
    if scale is not None:
        value *= scale + 1.0 if KIND == 1 else scale
    if shift is not None:
        value += shift
    return value


@triton.jit
def _vector(held, at, width):  # type: ignore[no-untyped-def]
    """Channels `at` of a weight or bias, fp32; None of none."""
    if held is None:
        return None
    else:
        return tl.load(held + at, mask=at < width, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _norm(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, out, added, rows, width, inner, outer_stride, inner_stride, residual_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """`ROWS` rows. Row r of `x` begins at ``r // inner * outer_stride + r % inner * inner_stride``; the others'
    follow each other. KIND: 0 RMS, 1 Gemma's RMS, 2 layer norm. ONCE: a row is one block, and stays in registers."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    start = row // inner * outer_stride + row % inner * inner_stride
    kind: tl.constexpr = x.dtype.element_ty
    if ONCE:
        at = tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (at < width)
        scale, shift = _vector(weight, at, width), _vector(bias, at, width)
        value = _input(x, residual, added, start, row, at, inside, width, residual_stride)
        mean = tl.sum(value, 1)[:, None] / width
        apart = tl.where(inside, value - mean, 0.0) if KIND == 2 else value
        factor = 1.0 / tl.sqrt(tl.sum(apart * apart, 1)[:, None] / width + eps)
        value = _output(value, mean, factor, scale, shift, kind, KIND)
        tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)
    else:
        total = tl.zeros([ROWS, 1], tl.float32)
        square = tl.zeros([ROWS, 1], tl.float32)
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)[None, :]
            value = _input(x, residual, added, start, row, at, (row < rows) & (at < width), width, residual_stride)
            if KIND == 2:
                total += tl.sum(value, 1)[:, None]
            else:
                square += tl.sum(value * value, 1)[:, None]
        mean = total / width
        if KIND == 2:
            for first in range(0, width, BLOCK):
                at = first + tl.arange(0, BLOCK)[None, :]
                inside = (row < rows) & (at < width)
                value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
                apart = tl.where(inside, value - mean, 0.0)
                square += tl.sum(apart * apart, 1)[:, None]
        factor = 1.0 / tl.sqrt(square / width + eps)
        if residual is not None:
            tl.debug_barrier()  # what other threads of the program have stored is loaded below
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)[None, :]
            inside = (row < rows) & (at < width)
            if residual is not None:
                value = tl.load(added + row * width + at, mask=inside, other=0.0).to(tl.float32)
            else:
                value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
            value = _output(value, mean, factor, _vector(weight, at, width), _vector(bias, at, width), kind, KIND)
            tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As `bestiary.nn.ops.norm.rms_norm`."""
    return _launch(x, None, weight, None, eps, 0)[0]


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """As `bestiary.nn.ops.norm.fused_add_rms_norm`."""
    return _launch(x, residual, weight, None, eps, 0)


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `bestiary.nn.ops.norm.gemma_rms_norm`."""
    return _launch(x, None, weight, None, eps, 1)[0]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As `bestiary.nn.ops.norm.layer_norm`, rounded once."""
    return _launch(x, None, weight, bias, eps, 2)[0]


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, kind: int
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    added = out if residual is None else torch.empty_like(out)
    rows = out.numel() // width if width else 0
    if not rows:
        return out, added
    x, (inner, outer_stride, inner_stride) = _laid_out(x)
    residual = None if residual is None else residual.contiguous()
    many, block, warps = _tile(width)
    _norm[(cdiv(rows, many),)](
        x, residual, weight, bias, out, added, rows, width, inner, outer_stride, inner_stride, width, eps,
        ROWS=many, BLOCK=block, KIND=kind, ONCE=width <= block, num_warps=warps,
    )  # fmt: skip
    return out, added


def _laid_out(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """`x`, copied where its last dimension or its leading ones do not lie evenly, and how its rows lie: so many in an
    inner dimension, the strides of the outer one and of the inner one."""
    if x.stride(-1) == 1 and x.dim() == 2:
        return x, (1, x.stride(0), 0)
    if x.stride(-1) == 1 and x.dim() == 3:
        return x, (x.shape[1], x.stride(0), x.stride(1))
    return x.contiguous(), (1, x.shape[-1], 0)


def _tile(width: int) -> tuple[int, int, int]:
    """Rows of a program, channels at once, warps: narrow rows share a program, wide ones pass in strips."""
    block = min(_WIDEST, power_of_2(width))
    if block <= 256:
        return 1024 // block, block, 4
    return 1, block, 4 if block <= 2048 else 8


_STRIDES = ("width", "outer_stride", "inner_stride", "residual_stride")
_NUMBERS = ("rows", "inner", *_STRIDES)


def variants() -> Iterator[Variant]:
    for dtype in ("*bf16", "*fp16", "*fp32"):
        pointers = dict.fromkeys(("x", "residual", "weight", "bias", "out", "added"), dtype)
        signature = {**pointers, **dict.fromkeys(_NUMBERS, "i32"), "eps": "fp32"}
        for width in (128, 4096, 8192, 16384) if dtype == "*bf16" else (128, 8192, 16384):
            many, block, warps = _tile(width)
            for kind, absent in (
                (0, ("residual", "bias")),
                (0, ("bias",)),
                (1, ("residual", "bias")),
                (2, ("residual",)),
            ):
                constants: dict[str, object] = {"ROWS": many, "BLOCK": block, "KIND": kind, "ONCE": width <= block}
                constants |= dict.fromkeys(absent)
                yield Variant(_norm, signature, constants, warps, divisible=_STRIDES)
