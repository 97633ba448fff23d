"""What adapters add to many rows: tiles of rows of one slot, whose factors are read once a tile, by `tl.dot`.

Which rows those are, the host says (`SlotRows.runs`): a sequence's rows lie one after another, and so do most rows of
one slot; nothing is sorted or gathered. Where it does not know (recorded steps, rows that were picked), where rows are
few, where several rows share an entry of slots and where factors have another dtype than rows, kernels go row by row
(`lora`). A row's last bits depend on which of the two it is, so deterministic engines take only the other module's.

The first product is summed in fp32. So is the second, whose left side stays fp32: factors of 16 bits are exact in tf32,
and the left side is the sum of two numbers that tf32 holds. It is rounded once before it is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import lora
from .sizes import cdiv, power_of_2
from .variants import Variant

if TYPE_CHECKING:
    from bestiary.nn.lora.rows import SlotRows
    from bestiary.nn.lora.runs import Runs

_PROGRAMS = 128
"""Tiles of rows that occupy a large GPU."""
_FEWEST, _FEW = 64, 4
"""Rows of a step, and rows of a tile on average, below which a program for each row is as fast."""
_HEIGHT = 64
"""Rows of a tile of the second product, which has tiles enough by its columns."""


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of(tile, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile's slot, its rows, and which of them it has."""
    row = (tl.load(tile + 1) + tl.arange(0, ROWS)).to(tl.int64)
    return tl.load(tile).to(tl.int64), row, row < tl.load(tile + 2)


@triton.jit  # type: ignore[untyped-decorator]
def _shrink_tile(  # type: ignore[no-untyped-def]
    x, a, tiles, inner, width, rank, columns, x_stride, a_slot, a_shard, a_rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """``A x`` of a tile's rows, in fp32; the shards' ranks are `columns` beside one another."""
    across = tl.cdiv(columns, COLUMNS)
    slot, row, held = _rows_of(tiles + tl.program_id(0) // across * 3, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    wanted = column < columns
    factor = a + slot * a_slot + (column // rank).to(tl.int64) * a_shard + (column % rank).to(tl.int64) * a_rank
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, STRIP):
        k = start + tl.arange(0, STRIP)
        inside = k < width
        left = tl.load(x + row[:, None] * x_stride + k[None, :], mask=held[:, None] & inside[None, :], other=0.0)
        right = tl.load(factor[None, :] + k[:, None], mask=wanted[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(left, right, sums, input_precision="ieee")
    at = inner + row[:, None] * columns + column[None, :]
    tl.store(at, sums, mask=held[:, None] & wanted[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _expand_tile(  # type: ignore[no-untyped-def]
    inner, b, tiles, out, width, rank, inner_stride, b_slot, b_row, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """``out += B inner`` of some columns of a tile's rows."""
    across = tl.cdiv(width, COLUMNS)
    slot, row, held = _rows_of(tiles + tl.program_id(0) // across * 3, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    within = column < width
    at = out + row[:, None] * out_stride + column[None, :]
    there = held[:, None] & within[None, :]
    before = tl.load(at, mask=there, other=0.0)
    factor = b + slot * b_slot + column.to(tl.int64)[None, :] * b_row
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, rank, STRIP, num_stages=1):
        r = start + tl.arange(0, STRIP)
        value = tl.load(inner + row[:, None] * inner_stride + r[None, :], mask=held[:, None] & (r < rank)[None, :],
                        other=0.0)  # fmt: skip
        other = tl.load(factor + r[:, None], mask=within[None, :] & (r < rank)[:, None], other=0.0).to(tl.float32)
        if SPLIT:
            # The 11 bits that tf32 keeps; what is left has 13 at most, of which it keeps 11.
            high = (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            sums = tl.dot(value - high, other, sums, input_precision="tf32")
            sums = tl.dot(high, other, sums, input_precision="tf32")
        else:
            sums = tl.dot(value, other, sums, input_precision="ieee")
    kind = out.dtype.element_ty
    added = sums.to(kind).to(tl.float32)
    tl.store(at, (before.to(tl.float32) + added).to(kind), mask=there)


def add_lora(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """As `bestiary.nn.ops.lora.add_lora`. Of factors only so much is read as the largest of `ranks`, in whole 16s."""
    runs = _worth_tiles(x, rows)
    if runs is None or x.dtype is not a.dtype or not ranks:
        return lora.add_lora(out, x, a, b, sizes, rows, ranks)
    rank = min(a.shape[2], cdiv(max(ranks.values()), 16) * 16)
    x = x if x.stride(1) == 1 else x.contiguous()
    a = a if a.stride(3) == 1 else a.contiguous()
    columns, height = a.shape[1] * rank, _height(runs.adapted)
    inner = torch.empty(len(x), columns, dtype=torch.float32, device=x.device)
    tiles, shape = runs.tiles(height), _shrink_shape(height, columns, x.dtype)
    _shrink_tile[(len(tiles) * cdiv(columns, shape["COLUMNS"]),)](
        x, a, tiles, inner, x.shape[1], rank, columns, x.stride(0), *a.stride()[:3], ROWS=height, **shape
    )
    return _add(out, inner.view(len(x), -1, rank), b, sizes, runs)


def add_lora_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """As `bestiary.nn.ops.lora.add_lora_embedding`. Rows of the first factor are looked up one by one."""
    runs = _worth_tiles(ids.unsqueeze(-1), rows)
    if runs is None:
        return lora.add_lora_embedding(out, ids, a, b, rows, ranks)
    return _add(out, lora.looked_up(ids, a, rows), b, [out.shape[1]], runs)


def _add(out: Tensor, inner: Tensor, b: Tensor, sizes: Sequence[int], runs: Runs) -> Tensor:
    """Every shard's second product, added to its part of `out` in place. `inner`: ``[rows, shards, rank]``."""
    held = out if out.stride(1) == 1 else out.contiguous()
    b = b if b.stride(2) == 1 else b.contiguous()
    tiles, rank, shape, start = runs.tiles(_HEIGHT), inner.shape[2], _expand_shape(inner.shape[2], b.dtype), 0
    for shard, size in enumerate(sizes):
        _expand_tile[(len(tiles) * cdiv(size, shape["COLUMNS"]),)](
            inner[:, shard], b[:, start : start + size], tiles, held[:, start : start + size], size, rank,
            inner.stride(0), b.stride(0), b.stride(1), held.stride(0), ROWS=_HEIGHT, **shape,
        )  # fmt: skip
        start += size
    return out if held is out else out.copy_(held)


def _worth_tiles(x: Tensor, rows: SlotRows) -> Runs | None:
    """The runs of rows ``x``; None where they go row by row."""
    runs = rows.runs
    if runs is None or x.dim() != 2 or runs.adapted < _FEWEST:
        return None
    return runs if runs.tile_count(_height(runs.adapted)) * _FEW <= runs.adapted else None


def _height(rows: int) -> int:
    """Rows of a tile of the first product: low where rows are few, so that there are tiles enough."""
    return max(16, min(64, power_of_2(cdiv(rows, _PROGRAMS))))


def _shrink_shape(height: int, columns: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of the first product and its warps: three strips lie in less than 99 KiB."""
    wide = max(16, min(64, power_of_2(columns)))
    strip = 32 if dtype is torch.float32 else 128
    return {"COLUMNS": wide, "STRIP": strip, "num_warps": 4 if height * wide > 1024 else 2, "num_stages": 3}


def _expand_shape(rank: int, b: torch.dtype) -> dict[str, Any]:
    """Constants of the second product, which is split where factors are exact in tf32."""
    if b is torch.float32:
        return {"COLUMNS": 32, "STRIP": 16, "SPLIT": False}
    return {"COLUMNS": 64, "STRIP": 16 if rank <= 16 else 32, "SPLIT": True}


def variants() -> Iterator[Variant]:
    """Few rows and many, one shard and three, of ranks that need padding and those that do not."""
    numbers = ("width", "rank", "columns", "x_stride", "a_slot", "a_shard", "a_rank", "inner_stride", "b_slot",
               "b_row", "out_stride")  # fmt: skip
    even = {each: tuple(name for name in each.arg_names if name in numbers) for each in (_shrink_tile, _expand_tile)}
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        signature = dict.fromkeys(numbers, "i32") | {"tiles": "*i32", "inner": "*fp32"}
        signature |= dict.fromkeys(("x", "a", "b", "out"), kind)
        for height in (16, 32, 64):
            for columns in (16, 64):
                yield _variant(_shrink_tile, signature, height, _shrink_shape(height, columns, dtype), even)
        for rank in (16, 64) if dtype is not torch.float32 else (64,):
            yield _variant(_expand_tile, signature, _HEIGHT, _expand_shape(rank, dtype), even)


def _variant(
    kernel: Any, signature: Mapping[str, str], height: int, shape: Mapping[str, Any], even: Mapping[Any, Any]
) -> Variant:
    constants = {"ROWS": height} | {name: value for name, value in shape.items() if not name.startswith("num_")}
    warps, stages = shape.get("num_warps", 4), shape.get("num_stages", 3)
    return Variant(kernel, signature, constants, warps, stages, divisible=even[kernel])
