"""What adapters add, each row with the factors of its own slot, which is read on the device.

A program computes one row, so its bits do not depend on the others. Factors are read again for every row, from the
cache where rows share a slot; for many rows, `lora_tiles` has what reads them less often. What a slot holds beyond its
adapter's rank is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, power_of_2
from .variants import Variant

if TYPE_CHECKING:
    from bestiary.nn.lora.rows import SlotRows

_STRIP, _COLUMNS = 128, 64


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x, a, slots, inner, width, rank, per_slot, x_stride, a_slot, a_shard, a_rank,
    RANK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """``A x`` of one row and shard, in fp32. `per_slot`: rows of `x` that share an entry of `slots`."""
    row, shard = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row // per_slot)
    if slot < 0:
        return
    r = tl.arange(0, RANK)
    factor = a + slot * a_slot + shard * a_shard + r.to(tl.int64)[:, None] * a_rank
    sums = tl.zeros([RANK], tl.float32)
    for start in range(0, width, STRIP):
        k = start + tl.arange(0, STRIP)
        value = tl.load(x + row * x_stride + k, mask=k < width, other=0.0).to(tl.float32)
        held = tl.load(factor + k[None, :], mask=(r[:, None] < rank) & (k[None, :] < width), other=0.0)
        sums += tl.sum(held.to(tl.float32) * value[None, :], 1)
    tl.store(inner + (row * tl.num_programs(1) + shard) * rank + r, sums, mask=r < rank)


@triton.jit  # type: ignore[untyped-decorator]
def _look_up(  # type: ignore[no-untyped-def]
    ids, a, slots, inner, rank, per_slot, a_slot, a_row, RANK: tl.constexpr
):  # fmt: skip
    """The same for an embedding, whose first factor is a table."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row // per_slot)
    if slot < 0:
        return
    r = tl.arange(0, RANK)
    value = tl.load(a + slot * a_slot + tl.load(ids + row) * a_row + r, mask=r < rank, other=0.0)
    tl.store(inner + row * rank + r, value.to(tl.float32), mask=r < rank)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    inner, b, slots, out, width, rank, per_slot, inner_stride, b_slot, b_row, out_stride,
    RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out += B inner`` of one row's strip; the product is made in fp32 and rounded once before it is added."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row // per_slot)
    if slot < 0:
        return
    r = tl.arange(0, RANK)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < width
    value = tl.load(inner + row * inner_stride + r, mask=r < rank, other=0.0)
    factor = b + slot * b_slot + column.to(tl.int64)[:, None] * b_row + r[None, :]
    held = tl.load(factor, mask=within[:, None] & (r[None, :] < rank), other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    added = tl.sum(held * value[None, :], 1).to(kind).to(tl.float32)
    at = out + row * out_stride + column
    before = tl.load(at, mask=within, other=0.0).to(tl.float32)
    tl.store(at, (before + added).to(kind), mask=within)


def add_lora(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """As `bestiary.nn.ops.lora.add_lora`; `ranks` is not needed, since factors are zero beyond them."""
    flat = x.reshape(-1, x.shape[-1])
    if not len(flat):
        return out
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    a = a if a.stride(3) == 1 else a.contiguous()
    shards, rank = a.shape[1:3]
    inner = torch.empty(len(flat), shards, rank, dtype=torch.float32, device=x.device)
    _shrink[len(flat), shards](
        flat, a, rows.slots, inner, flat.shape[1], rank, len(flat) // len(rows.slots), flat.stride(0), *a.stride()[:3],
        RANK=power_of_2(rank), STRIP=_strip(rank),
    )  # fmt: skip
    return _add(out, inner, b, sizes, rows.slots)


def add_lora_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """As `bestiary.nn.ops.lora.add_lora_embedding`."""
    return _add(out, looked_up(ids, a, rows), b, [out.shape[-1]], rows.slots) if ids.numel() else out


def looked_up(ids: Tensor, a: Tensor, rows: SlotRows) -> Tensor:
    """``A x`` of an embedding, fp32 ``[ids, 1, rank]``; what stands in rows without an adapter is no result."""
    flat, rank = ids.reshape(-1), a.shape[2]
    inner = torch.empty(len(flat), 1, rank, dtype=torch.float32, device=ids.device)
    a = a if a.stride(2) == 1 else a.contiguous()
    _look_up[(len(flat),)](
        flat, a, rows.slots, inner, rank, len(flat) // len(rows.slots), a.stride(0), a.stride(1),
        RANK=power_of_2(rank),
    )  # fmt: skip
    return inner


def _add(out: Tensor, inner: Tensor, b: Tensor, sizes: Sequence[int], slots: Tensor) -> Tensor:
    """Every shard's second product, added to its part of `out` in place."""
    flat = out.reshape(-1, out.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    b = b if b.stride(2) == 1 else b.contiguous()
    rank, start = inner.shape[2], 0
    for shard, size in enumerate(sizes):
        _expand[len(flat), cdiv(size, _COLUMNS)](
            inner[:, shard], b[:, start : start + size], slots, flat[:, start : start + size], size, rank,
            len(flat) // len(slots), inner.stride(0), b.stride(0), b.stride(1), flat.stride(0),
            RANK=power_of_2(rank), COLUMNS=_COLUMNS,
        )  # fmt: skip
        start += size
    return out if flat.data_ptr() == out.data_ptr() else out.copy_(flat.view(out.shape))


def _strip(rank: int) -> int:
    """Inputs at a time: a tile of 4096 numbers fits the registers of four warps."""
    return max(16, min(_STRIP, 4096 // power_of_2(rank)))


def variants() -> Iterator[Variant]:
    numbers = ("width", "rank", "per_slot", "x_stride", "inner_stride", "a_slot", "a_shard", "a_rank", "a_row",
               "b_slot", "b_row", "out_stride")  # fmt: skip
    even = {
        each: tuple(name for name in each.arg_names if name in numbers and name != "per_slot")
        for each in (_shrink, _expand, _look_up)
    }
    signature = dict.fromkeys(numbers, "i32") | {"slots": "*i64", "ids": "*i64", "inner": "*fp32"}
    for dtype in ("*bf16", "*fp16", "*fp32"):
        of = {**signature, **dict.fromkeys(("x", "a", "b", "out"), dtype)}
        for rank in (16, 64):
            yield Variant(_shrink, of, {"RANK": rank, "STRIP": _strip(rank)}, divisible=even[_shrink])
            yield Variant(_expand, of, {"RANK": rank, "COLUMNS": _COLUMNS}, divisible=even[_expand])
        yield Variant(_look_up, of, {"RANK": 16}, divisible=even[_look_up])
