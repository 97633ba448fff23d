"""A matrix product whose rows do not depend on their batch: one tile shape, one order of summation.

cuBLAS chooses its kernel, and whether it divides the inner dimension, by the shape of the whole product. Here a tile
is `ROWS` rows by a number of columns that the weight's width alone decides, and the inner dimension is summed strip by
strip in fp32, by one program. A row's sum is then the same instructions on the same numbers, whatever other rows hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .available import has_much_shared_memory
from .sizes import cdiv
from .variants import Variant

ROWS, GROUP, _WIDE = 64, 8, 8192


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    x, weight, bias, out, rows, width, inner, x_stride, weight_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of ``x @ weight.T + bias``. Tiles go by groups of rows, so that what they share is still near."""
    program = tl.program_id(0)
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(rows, ROWS)
    in_group = GROUP * across
    first = program // in_group * GROUP
    height = tl.minimum(down - first, GROUP)
    row = ((first + program % in_group % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (program % in_group // height * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inner, STRIP):
        k = start + tl.arange(0, STRIP)
        left = tl.load(
            x + row[:, None] * x_stride + k[None, :], mask=(row[:, None] < rows) & (k[None, :] < inner), other=0.0
        )
        right = tl.load(
            weight + column[None, :] * weight_stride + k[:, None],
            mask=(column[None, :] < width) & (k[:, None] < inner), other=0.0,
        )  # fmt: skip
        sums = tl.dot(left, right, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    at = out + row[:, None] * width + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < width))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `bestiary.nn.ops.linear.linear`, rounded once; every row's bits are its own."""
    width, inner = weight.shape
    rows = x.reshape(-1, inner)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    out = torch.empty(len(rows), width, dtype=x.dtype, device=x.device)
    if out.numel():
        columns, strip, warps, stages = _tile(width, x.dtype, len(rows) <= ROWS and has_much_shared_memory(x.device))
        count = cdiv(len(rows), ROWS) * cdiv(width, columns)
        _product[(count,)](
            rows, weight, bias, out, len(rows), width, inner, rows.stride(0), weight.stride(0),
            ROWS=ROWS, COLUMNS=columns, STRIP=strip, GROUP=GROUP, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out.view(*x.shape[:-1], width)


def _tile(width: int, dtype: torch.dtype, ahead: bool) -> tuple[int, int, int, int]:
    """Columns, inner strip, warps, stages. A narrow weight takes narrow tiles, so that there are enough of them; of few
    rows they are still fewer than multiprocessors, and copies go far `ahead`, which changes no sum."""
    if dtype is torch.float32:
        return 32, 32, 4, 2
    if width > _WIDE:
        return 128, 64, 4, 4
    return 64, 64, 4, 8 if ahead else 4


def variants() -> Iterator[Variant]:
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        cases = ((4096, False),) if dtype is torch.float32 else ((4096, True), (4096, False), (14336, False))
        for width, ahead in cases:
            for bias in (True, False):
                columns, strip, warps, stages = _tile(width, dtype, ahead)
                signature = dict.fromkeys(("x", "weight", "bias", "out"), kind)
                signature |= dict.fromkeys(("rows", "width", "inner", "x_stride", "weight_stride"), "i32")
                constants = {"ROWS": ROWS, "COLUMNS": columns, "STRIP": strip, "GROUP": GROUP}
                absent = {} if bias else {"bias": None}
                strides = ("width", "inner", "x_stride", "weight_stride")
                yield Variant(_product, signature, {**constants, **absent}, warps, stages, divisible=strides)
