"""``x @ weight.T + bias`` where the weight is codes of 8 or 4 bits with scales: decoded in registers, then multiplied.

The layouts are those of `bestiary.nn.ops.quant`. A code (less its zero, times its group's scale, in fp32) is rounded to
the dtype of `x`; sums are fp32. Where a whole row has one scale, or whole strips of 128 have, it multiplies sums
instead, and nothing is rounded before. That is more exact than the reference in bf16. In fp16 the reference computes in
fp32, and products with smaller groups with weights rounded to fp16.
The order of summation depends on how many rows there are, unless `exact` (as in `dequant`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .codes import e4m3_for, scales_of, strip, word_size
from .lanes import arranged, inputs_read, outputs_read, rows_read, strips_from
from .shapes import GROUP_M, Tile, tile_of
from .sizes import cdiv
from .tables import table_of
from .tiles import finish, first_inputs, multiplied, no_sums, of_outputs, summed, tile_at
from .variants import Variant


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _linear_grouped(  # type: ignore[no-untyped-def]
    x, weight, scale, zero, codebook, bias, out,
    rows, width, depth, groups, group_size, x_stride, weight_stride,
    CODES: tl.constexpr, SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile; `CODES`, `SCALES`, `SIZE` and `EVEN` as in `codes.strip`, `UNIT` as in `lanes`."""
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + rows_read(BLOCK_M, BLOCK_K, PARTS, UNIT)
    n = (column_tile * BLOCK_N + outputs_read(BLOCK_N, PARTS, UNIT)).to(tl.int64)
    row, column = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    output, there = column.to(tl.int64), column < width
    x_at, nothing = x + m.to(tl.int64) * x_stride, tl.minimum(rows, 0)
    acc, table = no_sums(BLOCK_M, BLOCK_N, PARTS), table_of(codebook)
    for start in range(0, depth, BLOCK_K):
        k = inputs_read(start, BLOCK_M, BLOCK_K, PARTS, UNIT)
        within = m < rows if EVEN else (m < rows) & (k < depth)
        left = arranged(tl.load(x_at + k, mask=within, other=0), BLOCK_M, BLOCK_K, PARTS, UNIT)
        first, side = strips_from(start, BLOCK_N, BLOCK_K, PARTS, UNIT)
        numbers = strip(
            weight, scale, zero, table, n, n < width, first, side, depth, groups, group_size, weight_stride, nothing,
            CODES, SCALES, UNIT if UNIT else BLOCK_K, SIZE, EVEN,
        )  # fmt: skip
        if SCALES == "apart":
            group = tl.minimum(first_inputs(start, BLOCK_K, PARTS) // group_size, groups - 1)
            by = tl.load(scale + of_outputs(output, PARTS) * groups + group, mask=of_outputs(there, PARTS), other=0)
            acc += multiplied(left, numbers, no_sums(BLOCK_M, BLOCK_N, PARTS), BLOCK_N, BLOCK_K, PARTS, UNIT) * by
        else:
            acc = multiplied(left, numbers, acc, BLOCK_N, BLOCK_K, PARTS, UNIT)
    sums = summed(acc, PARTS)
    if SCALES == "row":
        sums *= tl.load(scale + column, mask=there, other=0)[None, :]
    finish(sums, bias, out, row, column, rows, width, HAS_BIAS)


def _product(
    x: Tensor, weight: Tensor, codes: str, scales: str, scale: Tensor, zero: Tensor | None, group_size: int,
    order: Tensor | None, bias: Tensor | None, exact: bool, codebook: Tensor | None = None,
) -> Tensor:  # fmt: skip
    left = x.reshape(-1, x.shape[-1])
    left = left.index_select(1, order) if order is not None else left if left.stride(1) == 1 else left.contiguous()
    width, depth = weight.shape[0], left.shape[1]
    weight, zero = weight.contiguous(), None if zero is None else zero.contiguous()
    rows = left.shape[0]
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tile = tile_of(codes, scales, rows, x.dtype, exact)
    if rows and width:
        grid = (cdiv(rows, tile.block_m) * cdiv(width, tile.block_n),)
        _linear_grouped[grid](
            left, weight, scale.contiguous(), zero, codebook, bias, out,
            rows, width, depth, scale.shape[-1], group_size, left.stride(0), weight.stride(0),
            CODES=codes, SCALES=scales, HAS_BIAS=bias is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k, PARTS=tile.parts, UNIT=tile.unit, SIZE=word_size(codes, weight, zero),
            EVEN=depth % tile.block_k == 0, GROUP_M=GROUP_M, num_warps=tile.num_warps, num_stages=tile.num_stages,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out.view(*x.shape[:-1], width)


def linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, exact: bool = False
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_int8`."""
    return _product(x, weight, "int8", "row", scale, None, x.shape[-1], None, bias, exact)


def linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, group_size: int, bias: Tensor | None = None, *, exact: bool = False
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_fp8`; codes are taken apart as bits where a GPU has no instructions for them."""
    scales = "row" if scale.shape[1] == 1 else scales_of(group_size, scale.shape[1])
    return _product(x, weight.view(torch.uint8), e4m3_for(x.device), scales, scale, None, group_size, None, bias, exact)


def linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None = None,
    bias: Tensor | None = None, *, exact: bool = False,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_int4`."""
    scales = scales_of(group_size, scale.shape[1])
    return _product(x, weight, "int4", scales, scale, zero, _size(x, scale, group_size), order, bias, exact)


def linear_uint8(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None = None,
    bias: Tensor | None = None, *, exact: bool = False,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_uint8`."""
    scales = scales_of(group_size, scale.shape[1])
    return _product(x, weight, "uint8", scales, scale, zero, _size(x, scale, group_size), order, bias, exact)


def linear_codebook(
    x: Tensor, weight: Tensor, scale: Tensor, codebook: Tensor, group_size: int, bias: Tensor | None = None, *,
    exact: bool = False,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_codebook`."""
    scales, size = scales_of(group_size, scale.shape[1], whole=False), _size(x, scale, group_size)
    return _product(x, weight, "codebook", scales, scale, None, size, None, bias, exact, codebook.contiguous())


def _size(x: Tensor, scale: Tensor, group_size: int) -> int:
    """One group is all inputs, whatever its size is called."""
    return x.shape[-1] if scale.shape[1] == 1 else group_size


def variants() -> Iterator[Variant]:
    """Each kind of code as checkpoints have it, in bf16 with both tiles, and where rows are few also with strips that
    end early, of rows that are no whole words; the rest of the code is the same for all."""
    cases = [("int8", "row"), ("fp8", "row"), ("fp8", "even"), ("fp8", "apart"), ("e4m3", "row"), ("e4m3", "even")]
    cases += [("int4", "even"), ("int4", "apart"), ("int4", "any")]
    for codes, scales in [*cases, ("uint8", "even"), ("codebook", "even")]:
        for rows, even in ((1, True), (1, False), (16, True), (64, True)):
            yield _variant(codes, scales, tile_of(codes, scales, rows, torch.bfloat16), even)


def _variant(codes: str, scales: str, tile: Tile, even: bool) -> Variant:
    divisible = ("width", "depth", "x_stride", "weight_stride")
    constants: dict[str, object] = {
        "CODES": codes, "SCALES": scales, "HAS_BIAS": False, "bias": None, "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "PARTS": tile.parts, "UNIT": tile.unit,
        "SIZE": 4 if even else 1, "EVEN": even, "GROUP_M": GROUP_M,
    }  # fmt: skip
    constants |= {} if codes in ("int4", "uint8") else {"zero": None}
    constants |= {} if codes == "codebook" else {"codebook": None}
    types = {"x": "*bf16", "weight": "*i8" if codes == "int8" else "*u8", "scale": "*fp32", "zero": "*u8"}
    types |= {"codebook": "*fp32", "out": "*bf16"}
    types |= dict.fromkeys(("rows", *divisible, "groups", "group_size"), "i32")
    return Variant(
        _linear_grouped, types, constants, tile.num_warps, tile.num_stages, 89 if codes == "fp8" else 80,
        89 if codes == "e4m3" else 1000, options={"enable_fp_fusion": False},
        divisible=divisible if even else divisible[:3],
    )  # fmt: skip
