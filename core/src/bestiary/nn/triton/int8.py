"""int8 activations times int8 weights: one kernel rounds a token's activations, one multiplies on the tensor cores.

Sums are int32, hence exact in whatever order; they are scaled in fp32 and rounded once. Reads weights once for each
tile of rows: few rows are bound by their bytes, many by the product, at twice the rate of 16-bit numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shapes import GROUP_M, Tile
from .sizes import cdiv
from .tiles import finish, tile_at
from .variants import Variant

_BLOCK = 2048
_FIXED, _SYMMETRIC, _RANGE = 0, 1, 2


@triton.jit
def _whole(number):  # type: ignore[no-untyped-def]
    """fp32 within ±2²² → the nearest whole number, int32, even ones first: adding 1.5 · 2²³ leaves it in the bits."""
    return (number + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(  # type: ignore[no-untyped-def]
    x, given_scale, given_zero, codes, scales, zeros, depth, x_stride, given_stride,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: its scale (NaN where one is in it), zero and int8 codes, as `bestiary.nn.ops.quant.int8_codes`. KIND:
    0 both are given, `given_stride` apart or for all, 1 ``max|x| / 127``, 2 the range from min to max, zero included,
    in 255 steps."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    low, high = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    broken = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = tl.load(x + at, mask=at < depth, other=0).to(tl.float32)
        low, high = tl.minimum(low, number), tl.maximum(high, number)
        broken |= (number != number).to(tl.int32)
    least, most = tl.min(low, 0), tl.max(high, 0)
    zero = 0
    if KIND == 0:
        scale = tl.load(given_scale + row * given_stride).to(tl.float32)
        if given_zero is not None:
            zero = tl.load(given_zero + row * given_stride).to(tl.int32)
    elif KIND == 1:
        scale = tl.div_rn(tl.maximum(tl.maximum(-least, most), 1e-12), 127.0)
    else:
        scale = tl.div_rn(tl.maximum(most - least, 1e-12), 255.0)
        zero = _whole(tl.maximum(-128.0 - tl.div_rn(least, scale), -256.0))
    tl.store(scales + row, tl.where(tl.max(broken, 0) > 0, float("nan"), scale))
    if zeros is not None:
        tl.store(zeros + row, zero)
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = tl.div_rn(tl.load(x + at, mask=at < depth, other=0).to(tl.float32), scale)
        code = _whole(tl.minimum(tl.maximum(number, -1024.0), 1024.0)) + zero
        tl.store(codes + row * depth + at, tl.minimum(tl.maximum(code, -128), 127).to(tl.int8), mask=at < depth)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    codes, weight, scale, steps, zeros, bias, out, rows, width, depth, weight_stride,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile of ``(codes - zero) @ weight.T * step * scale + bias``."""
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    left_at = codes + m.to(tl.int64)[:, None] * depth + k[None, :]
    right_at = weight + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    sums = tl.full((BLOCK_N,), 0, tl.int32)
    for start in range(0, depth, BLOCK_K):
        inside = (k < depth - start)[None, :]
        left = tl.load(left_at + start, mask=(m < rows)[:, None] & inside, other=0)
        right = tl.load(right_at + start, mask=(n < width)[:, None] & inside, other=0)
        acc = tl.dot(left, tl.trans(right), acc, out_dtype=tl.int32)
        if zeros is not None:
            sums += tl.sum(right.to(tl.int32), 1)
    if zeros is not None:
        acc -= tl.load(zeros + m, mask=m < rows, other=0)[:, None] * sums[None, :]
    scaled = acc.to(tl.float32) * tl.load(steps + m, mask=m < rows, other=0.0)[:, None]
    scaled *= tl.load(scale + n, mask=n < width, other=0.0)[None, :]
    finish(scaled, bias, out, m, n, rows, width, HAS_BIAS)


def rounded_to_int8(
    x: Tensor, scale: Tensor | None, zero: Tensor | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x ``[rows, depth]`` → int8 codes, their scales fp32 ``[rows]``, their zeros int32 ``[rows]`` or None for 0.
    `scale` and `zero` are one for all or ``[rows]``."""
    rows, depth = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    kind = _FIXED if scale is not None else _SYMMETRIC if symmetric else _RANGE
    codes = torch.empty(rows, depth, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    shifted = kind == _RANGE or (kind == _FIXED and zero is not None)
    zeros = torch.empty(rows, dtype=torch.int32, device=x.device) if shifted else None
    if rows:
        given = (scale, zero) if kind == _FIXED else (None, None)
        apart = 0 if scale is None or scale.numel() == 1 else 1
        _rounded[rows,](
            x, *given, codes, scales, zeros, depth, x.stride(0), apart, KIND=kind, BLOCK=_BLOCK, num_warps=8
        )
    return codes, scales, zeros


def linear_int8_int8(
    x: Tensor, weight: Tensor, scale: Tensor, input_scale: Tensor | None = None, input_zero: Tensor | None = None,
    symmetric: bool = True, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_int8_int8`; a row's bits are its own."""
    width, depth = weight.shape
    codes, steps, zeros = rounded_to_int8(x.reshape(-1, depth), input_scale, input_zero, symmetric)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    rows = len(codes)
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tile = _tile(rows)
    if out.numel():
        _product[cdiv(rows, tile.block_m) * cdiv(width, tile.block_n),](
            codes, weight, scale.contiguous(), steps, zeros, bias, out, rows, width, depth, weight.stride(0),
            HAS_BIAS=bias is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            GROUP_M=GROUP_M, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out.view(*x.shape[:-1], width)


def _tile(rows: int) -> Tile:
    """Few rows: narrow and deep tiles, so that there are enough of them, and many bytes under way."""
    return Tile(16, 32, 256, 4, 3) if rows <= 16 else Tile(64, 128, 128, 8, 3)


def variants() -> Iterator[Variant]:
    sizes, of_x = ("width", "depth", "weight_stride"), ("depth", "x_stride")
    types = {"x": "*bf16", "given_scale": "*fp32", "given_zero": "*fp32", "codes": "*i8", "scales": "*fp32"}
    types |= {"zeros": "*i32"} | dict.fromkeys((*of_x, "given_stride"), "i32")
    nothing = ("given_scale", "given_zero")
    for kind, absent in ((_FIXED, ()), (_FIXED, ("given_zero", "zeros")), (_SYMMETRIC, (*nothing, "zeros")),
                         (_RANGE, nothing)):  # fmt: skip
        yield Variant(_rounded, types, {"KIND": kind, "BLOCK": _BLOCK, **dict.fromkeys(absent)}, 8, divisible=of_x)
    types = {"codes": "*i8", "weight": "*i8", "scale": "*fp32", "steps": "*fp32", "zeros": "*i32", "out": "*bf16"}
    types |= {"bias": "*bf16"} | dict.fromkeys(("rows", *sizes), "i32")
    for tile in (_tile(1), _tile(64)):
        for has_bias, absent in ((False, ("bias", "zeros")), (True, ())):
            constants = {
                "HAS_BIAS": has_bias, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
                "GROUP_M": GROUP_M, **dict.fromkeys(absent),
            }  # fmt: skip
            yield Variant(_product, types, constants, tile.num_warps, tile.num_stages, divisible=sizes)
