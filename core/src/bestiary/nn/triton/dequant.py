"""``x @ weight.T + bias`` where the weight stays in GGUF blocks: each tile is decoded in registers, then multiplied.

Numbers decode in fp32 without fused multiply-adds and are rounded to the dtype of `x`, exactly as the reference does;
sums are fp32. Few rows are bound by reading the blocks, once; many by the product. A row's order of summation depends
on how many rows there are (`tile_for`), unless it is to be `exact`: then all have tiles of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops import gguf
from bestiary.nn.ops.gguf import BlockRows

from .gguf_blocks import FORMATS, decoded
from .tiles import finish, tile_at
from .variants import Variant

GROUP_M = 8


class Tile(NamedTuple):
    """Rows, outputs and inputs of a step, and how it is run."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def tile_for(rows: int, dtype: torch.dtype, exact: bool = False) -> Tile:
    """Few rows: narrow tiles, one for every multiprocessor, and deep ones, so that many bytes are under way. The tile
    for many, where it must be the same for all: what it computes for nobody costs few rows less than strips of 16 would
    cost many.

    fp32 has no tensor cores here, and needs registers for its products: its tiles are small.
    """
    rows = 1 << 30 if exact else rows
    if dtype is torch.float32:
        return Tile(16 if rows <= 16 else 32, 32, 32, 4, 2)
    return Tile(16, 32, 128, 4, 3) if rows <= 16 else Tile(64, 64, 64, 8, 3)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _linear_gguf(  # type: ignore[no-untyped-def]
    x, blocks, out, bias, rows, width, depth, x_stride, row_bytes,
    FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_rows = (blocks + n.to(tl.int64) * row_bytes)[:, None, None]
    group, j = tl.arange(0, BLOCK_K // 32)[None, :, None], tl.arange(0, 32)[None, None, :]
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
    for start in range(0, depth, BLOCK_K):
        left = tl.load(x_at + start, mask=(m < rows)[:, None] & (k < depth - start)[None, :], other=0)
        g = group + start // 32
        numbers = decoded(weight_rows, g, j, (n < width)[:, None, None] & (g * 32 < depth), FORMAT)
        right = tl.reshape(numbers, (BLOCK_N, BLOCK_K)).to(left.dtype)
        acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    finish(acc, bias, out, m, n, rows, width, HAS_BIAS)


def linear_gguf(
    x: Tensor, weight: Tensor, runs: Sequence[BlockRows], bias: Tensor | None = None, *, exact: bool = False
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.gguf.linear_gguf`, which computes runs of types without a decoder here."""
    products, at = [], 0
    for run in runs:
        part = None if bias is None else bias[at : at + run.rows]
        products.append(_product(x, weight, run, part, exact))
        at += run.rows
    return products[0] if len(products) == 1 else torch.cat(products, -1)


def _product(x: Tensor, weight: Tensor, run: BlockRows, bias: Tensor | None, exact: bool) -> Tensor:
    if run.type not in FORMATS:
        return gguf.linear_gguf.reference(x, weight, [run], bias)
    left = x.reshape(-1, x.shape[-1])
    left = left if left.stride(1) == 1 else left.contiguous()
    rows, depth = left.shape
    out = torch.empty(rows, run.rows, dtype=x.dtype, device=x.device)
    tile = tile_for(rows, x.dtype, exact)
    if rows and run.rows:
        grid = (triton.cdiv(rows, tile.block_m) * triton.cdiv(run.rows, tile.block_n),)
        _linear_gguf[grid](
            left, run.of(weight), out, bias, rows, run.rows, depth, left.stride(0), run.row_bytes,
            FORMAT=run.type.name, HAS_BIAS=bias is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k, GROUP_M=GROUP_M, num_warps=tile.num_warps, num_stages=tile.num_stages,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out.view(*x.shape[:-1], run.rows)


def variants() -> Iterator[Variant]:
    """Every format in bf16 with both tiles; the other dtypes with one format, the rest of their code being the same."""
    divisible = ("width", "depth", "x_stride")
    sizes = dict.fromkeys(("rows", *divisible, "row_bytes"), "i32")
    cases = [("*bf16", torch.bfloat16, kind.name) for kind in sorted(FORMATS)]
    cases += [("*fp16", torch.float16, "Q4_K"), ("*fp32", torch.float32, "Q4_K")]
    for name, dtype, kind in cases:
        for tile in (tile_for(1, dtype), tile_for(64, dtype)):
            constants: dict[str, object] = {
                "FORMAT": kind, "HAS_BIAS": False, "bias": None, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
                "BLOCK_K": tile.block_k, "GROUP_M": GROUP_M,
            }  # fmt: skip
            types = {"x": name, "blocks": "*u8", "out": name} | sizes
            yield Variant(
                _linear_gguf, types, constants, tile.num_warps, tile.num_stages,
                options={"enable_fp_fusion": False}, divisible=divisible,
            )  # fmt: skip
