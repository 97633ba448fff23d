"""``x @ weight.T + bias`` where the weight stays in GGUF blocks: each tile is decoded in registers, then multiplied.

Numbers decode in fp32 without fused multiply-adds and are rounded to the dtype of `x`, exactly as the reference does;
sums are fp32. Few rows are bound by reading the blocks, once; many by the product. A row's order of summation depends
on how many rows there are (`tile_for`), unless it is to be `exact`: then all have tiles of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.gguf.planes import PLANES
from bestiary.nn.ops import gguf
from bestiary.nn.ops.gguf import BlockRows

from .codes import word_size
from .gguf_blocks import FORMATS, decoded
from .lanes import arranged, inputs_read, outputs_read, rows_read, strips_from
from .planes import plain, planes_in
from .shapes import GROUP_M, Tile, tile_of
from .sizes import cdiv
from .tiles import finish, multiplied, no_sums, summed, tile_at
from .variants import Variant


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _linear_gguf(  # type: ignore[no-untyped-def]
    x, blocks, out, bias, rows, width, depth, x_stride, row_bytes,
    FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr, UNIT: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr, PLANES: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile. `SIZE` and `PLANES` as in `gguf_blocks`, `UNIT` as in `lanes`; `EVEN`: whether `depth` is a multiple of
    `BLOCK_K`."""
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + rows_read(BLOCK_M, BLOCK_K, PARTS, UNIT)
    n = (column_tile * BLOCK_N + outputs_read(BLOCK_N, PARTS, UNIT)).to(tl.int64)
    x_at, zero = x + m.to(tl.int64) * x_stride, tl.minimum(rows, 0)
    acc = no_sums(BLOCK_M, BLOCK_N, PARTS)
    for start in range(0, depth, BLOCK_K):
        k = inputs_read(start, BLOCK_M, BLOCK_K, PARTS, UNIT)
        there = m < rows if EVEN else (m < rows) & (k < depth)
        left = arranged(tl.load(x_at + k, mask=there, other=0), BLOCK_M, BLOCK_K, PARTS, UNIT)
        at = _rows(blocks, n, width, depth, row_bytes, FORMAT, PLANES)
        first, side = strips_from(start, BLOCK_N, BLOCK_K, PARTS, UNIT)
        strip: tl.constexpr = UNIT if UNIT else BLOCK_K
        numbers = decoded(at, first, side, depth, n < width, zero, FORMAT, strip, SIZE, EVEN, PLANES)
        acc = multiplied(left, numbers, acc, BLOCK_N, BLOCK_K, PARTS, UNIT)
    row, column = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    finish(summed(acc, PARTS), bias, out, row, column, rows, width, HAS_BIAS)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(blocks, n, width, depth, row_bytes, FORMAT: tl.constexpr, PLANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where rows `n`, int64 ``[n, 1, 1]``, begin, as `gguf_blocks` has it."""
    if PLANES:
        SIX: tl.constexpr = FORMAT == "Q6_K"
        QUANTS: tl.constexpr = 128 if SIX else 32 if FORMAT == "Q8_0" else 16
        BITS: tl.constexpr = 64 if SIX else 4 if FORMAT == "Q5_0" or FORMAT == "Q5_1" else 0
        SCALES: tl.constexpr = 16 if SIX else 0
        count = depth // (256 if SIX else 32)
        before, whole = n * count, tl.cast(width, tl.int64) * count
        bits = blocks + whole * QUANTS
        scales = bits + whole * BITS
        factors = scales + whole * SCALES
        return blocks + before * QUANTS, bits + before * BITS, scales + before * SCALES, factors, before
    else:
        return (blocks + n * row_bytes,)


def linear_gguf(
    x: Tensor, weight: Tensor, runs: Sequence[BlockRows], bias: Tensor | None = None, *, exact: bool = False
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.gguf.linear_gguf`, which computes runs of types without a decoder here; of weights that
    `planes` packed as well."""
    products, at = [], 0
    for run in runs:
        part = None if bias is None else bias[at : at + run.rows]
        products.append(_product(x, weight, run, part, exact, run in planes_in(weight)))
        at += run.rows
    return products[0] if len(products) == 1 else torch.cat(products, -1)


def _product(x: Tensor, weight: Tensor, run: BlockRows, bias: Tensor | None, exact: bool, planes: bool) -> Tensor:
    if run.type not in FORMATS:
        return gguf.linear_gguf.reference(x, plain(weight), [run], bias)
    left = x.reshape(-1, x.shape[-1])
    left = left if left.stride(1) == 1 else left.contiguous()
    rows, depth = left.shape
    out = torch.empty(rows, run.rows, dtype=x.dtype, device=x.device)
    tile = tile_of(run.type.name, "blocks", rows, x.dtype, exact)
    blocks = run.of(plain(weight))
    if rows and run.rows:
        grid = (cdiv(rows, tile.block_m) * cdiv(run.rows, tile.block_n),)
        _linear_gguf[grid](
            left, blocks, out, bias, rows, run.rows, depth, left.stride(0), run.row_bytes,
            FORMAT=run.type.name, HAS_BIAS=bias is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k, PARTS=tile.parts, UNIT=tile.unit,
            SIZE=4 if planes else word_size(run.type.name, blocks), EVEN=depth % tile.block_k == 0, PLANES=planes,
            GROUP_M=GROUP_M, num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
    return out.view(*x.shape[:-1], run.rows)


def variants() -> Iterator[Variant]:
    """Every format in bf16 with both tiles, in blocks and in planes, with strips that end early where rows are few; the
    other dtypes with one format, the rest of their code being the same."""
    cases = [("*bf16", torch.bfloat16, kind) for kind in sorted(FORMATS)]
    cases += [("*fp16", torch.float16, GgmlType.Q4_K), ("*fp32", torch.float32, GgmlType.Q4_K)]
    cases += [("*fp32", torch.float32, GgmlType.Q6_K)]
    for name, dtype, kind in cases:
        for planes in (False, True) if kind in PLANES else (False,):
            for rows, even in ((1, True), (1, False), (16, True), (64, True)):
                yield _variant(name, kind, tile_of(kind.name, "blocks", rows, dtype), planes, even)


def _variant(name: str, kind: GgmlType, tile: Tile, planes: bool, even: bool) -> Variant:
    divisible = ("width", "depth", "x_stride", "row_bytes")
    constants: dict[str, object] = {
        "FORMAT": kind.name, "HAS_BIAS": False, "bias": None, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k, "PARTS": tile.parts, "UNIT": tile.unit,
        "SIZE": 4 if planes or kind.type_size % 4 == 0 else 2,
        "EVEN": even, "PLANES": planes, "GROUP_M": GROUP_M,
    }  # fmt: skip
    types = {"x": name, "blocks": "*u8", "out": name} | dict.fromkeys(("rows", *divisible), "i32")
    return Variant(
        _linear_gguf, types, constants, tile.num_warps, tile.num_stages, options={"enable_fp_fusion": False},
        divisible=divisible,
    )  # fmt: skip
