"""``x @ weight.T + bias`` in one tile size, for deterministic targets: a row's bits do not depend on its batch.

What holds: a number is the sum over the inputs in ascending order, `BLOCK_K` of them at a time, in fp32, by one program
that knows nothing of other rows. The tile is chosen by dtype and the weight's rows alone, never by the rows of `x`, so
that instructions are the same for any batch. Other GPUs, other Triton releases and a weight cut among other numbers of
ranks may give other bits.

The weight is read once for every `_BLOCK_M` rows: up to that many rows it is bound by reading the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import Variant

_BLOCK_M = 64
_GROUP_M = 8
"""Row tiles that share a weight tile while it is in the cache."""


class Tile(NamedTuple):
    """Outputs and inputs of a step, and how it is run."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def tile_for(dtype: torch.dtype, width: int) -> Tile:
    """Narrow weights in narrow tiles, so that there is one for every multiprocessor; fp32 has no tensor cores here."""
    if dtype is torch.float32:
        return Tile(64, 32, 4, 2)
    return Tile(64, 64, 4, 4) if width <= 8192 else Tile(128, 64, 4, 4)


@triton.jit  # type: ignore[untyped-decorator]
def tile_at(pid, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of the `pid`-th program: `GROUP_M` row tiles beside one another, then the next columns."""
    tall, wide = tl.cdiv(rows, BLOCK_M), tl.cdiv(width, BLOCK_N)
    first = pid // (GROUP_M * wide) * GROUP_M
    height = min(tall - first, GROUP_M)
    within = pid % (GROUP_M * wide)
    return first + within % height, within // height


@triton.jit  # type: ignore[untyped-decorator]
def finish(acc, bias, out, m, n, rows, width, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write sums `acc` ``[m, n]`` as the reference does: rounded, and again where a bias was added."""
    made = acc.to(out.dtype.element_ty)
    if HAS_BIAS:
        added = tl.load(bias + n, mask=n < width, other=0).to(tl.float32)
        made = (made.to(tl.float32) + added[None, :]).to(out.dtype.element_ty)
    at = m.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out + at, made, mask=(m < rows)[:, None] & (n < width)[None, :])


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weight, bias, out, rows, width, depth, x_stride, weight_stride,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_at = weight + n.to(tl.int64)[None, :] * weight_stride + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        within = k < depth - start
        left = tl.load(x_at + start, mask=(m < rows)[:, None] & within[None, :], other=0)
        right = tl.load(weight_at + start, mask=(n < width)[None, :] & within[:, None], other=0)
        acc = tl.dot(left, right, acc, input_precision="ieee")
    finish(acc, bias, out, m, n, rows, width, HAS_BIAS)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `bestiary.nn.ops.linear.linear`: fp32, fp16 or bf16, both of one dtype; sums in fp32."""
    (width, depth), dtype = weight.shape, x.dtype
    left, right = x.reshape(-1, depth), weight
    left = left if left.stride(1) == 1 else left.contiguous()
    right = right if right.stride(1) == 1 else right.contiguous()
    rows = left.shape[0]
    out = torch.empty(rows, width, dtype=dtype, device=x.device)
    tile = tile_for(dtype, width)
    if rows and width:
        grid = (triton.cdiv(rows, _BLOCK_M) * triton.cdiv(width, tile.block_n),)
        _linear[grid](
            left, right, bias, out, rows, width, depth, left.stride(0), right.stride(0),
            HAS_BIAS=bias is not None, BLOCK_M=_BLOCK_M, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=_GROUP_M,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out.view(*x.shape[:-1], width)


def variants() -> Iterator[Variant]:
    divisible = ("width", "depth", "x_stride", "weight_stride")
    sizes = dict.fromkeys(("rows", *divisible), "i32")
    for name, dtype in (("*bf16", torch.bfloat16), ("*fp16", torch.float16), ("*fp32", torch.float32)):
        for tile in dict.fromkeys(tile_for(dtype, width) for width in (4096, 128256)):
            for has_bias in (False, True):
                constants: dict[str, int | None] = {
                    "HAS_BIAS": has_bias, "BLOCK_M": _BLOCK_M, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
                    "GROUP_M": _GROUP_M,
                }  # fmt: skip
                if not has_bias:
                    constants["bias"] = None
                types = dict.fromkeys(("x", "weight", "bias", "out"), name) | sizes
                yield Variant(_linear, types, constants, tile.num_warps, tile.num_stages, divisible=divisible)
