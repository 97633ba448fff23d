"""Pairs of tokens and experts by expert, in one launch: the order, where each expert begins, and tiles of its pairs.

Every expert has a program, which counts all pairs by expert, finds its own, and keeps them in the order they came in: a
stable sort, without atomics. A decode step's few pairs would otherwise cost more launches than their products do. The
pairs of one token need no order at all: each is a tile of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, power_of_2
from .variants import Variant

_FEW, _MANY, _FILL = 128, 1024, 128


class Tiles(NamedTuple):
    """Pairs by expert, and tiles of at most `rows` pairs of one expert. A pair is ``token * k + place``.

    Attributes:
        order: the pairs, those of absent experts last. starts: ``[experts + 1]``, where an expert's pairs begin.
        experts: each tile's; the number of experts, or −1, for an empty tile. firsts: each tile's first place in
            `order`.

    `order`, `starts` and `firsts` are None where each pair is a tile.
    """

    order: Tensor | None
    starts: Tensor | None
    experts: Tensor
    firsts: Tensor | None

    @property
    def pairs(self) -> int:
        return len(self.experts if self.order is None else self.order)

    def expert_of_places(self, count: int) -> Tensor:
        """int64 ``[pairs]``; any of the `count` experts for the pairs of absent ones."""
        if self.order is None or self.starts is None:
            return self.experts.clamp_min(0)
        places = torch.arange(len(self.order), device=self.order.device)
        return (torch.searchsorted(self.starts, places, right=True) - 1).clamp(0, count - 1)

    def token_of_places(self, top_k: int) -> Tensor:
        """int64 ``[pairs]``."""
        return torch.zeros_like(self.experts) if self.order is None else self.order // top_k


@triton.jit
def places_of(order, starts, firsts, expert, row):  # type: ignore[no-untyped-def]
    """Where the rows `row` of this program's tile (axis 1 of the grid counts tiles) are, which of them are its
    `expert`'s, and their pairs: as `row` is, int64."""
    tile = tl.program_id(1)
    if order is None:
        place = tile.to(tl.int64) + row
        return place, row == 0, place
    else:
        place = tl.load(firsts + tile) + row
        held = place < tl.load(starts + expert + 1)
        return place, held, tl.load(order + place, mask=held, other=0)


@triton.jit(do_not_specialize=["pairs", "most"])  # type: ignore[untyped-decorator]
def _sort(  # type: ignore[no-untyped-def]
    slots, order, starts, experts, firsts, pairs, count, rows, most,
    BINS: tl.constexpr, CHUNK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """The pairs of one expert; the last program has those of no expert here, and the tiles that stay empty."""
    own = tl.program_id(0)
    counts = tl.zeros([BINS], tl.int32)
    for first in range(0, pairs, CHUNK):
        at = first + tl.arange(0, CHUNK)
        slot = tl.load(slots + at, mask=at < pairs, other=-1)
        counts += tl.histogram(tl.where(slot < 0, count, slot).to(tl.int32), BINS)
    expert = tl.arange(0, BINS)
    counts = tl.where(expert < count, counts, 0)
    tiles = (counts + rows - 1) // rows
    before = tl.sum(tl.where(expert < own, counts, 0), 0)
    tile = tl.sum(tl.where(expert < own, tiles, 0), 0)
    tl.store(starts + own, before.to(tl.int64))
    ends = tl.where(own < count, tile + tl.sum(tl.where(expert == own, tiles, 0), 0), most)
    for first in range(tile, ends, FILL):
        at = first + tl.arange(0, FILL)
        tl.store(experts + at, tl.zeros([FILL], tl.int64) + own, mask=at < ends)
        tl.store(firsts + at, (before + (at - tile) * rows).to(tl.int64), mask=at < ends)
    for first in range(0, pairs, CHUNK):
        at = first + tl.arange(0, CHUNK)
        slot = tl.load(slots + at, mask=at < pairs, other=-1)
        mine = (at < pairs) & (tl.where(slot < 0, count, slot) == own)
        place = before + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(order + place, at.to(tl.int64), mask=mine)
        before += tl.sum(mine.to(tl.int32), 0)


def sort_by_expert(slots: Tensor, count: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Tiles` of contiguous slots ``[tokens, k]``, int64, below `count`, −1 for an absent expert. All that depends on
    them stays on the device, and there are as many tiles as there could be at most."""
    pairs = slots.numel()
    most = cdiv(pairs + min(count, pairs) * (rows - 1), rows)
    order, starts, experts, firsts = (
        torch.empty(size, dtype=torch.int64, device=slots.device) for size in (pairs, count + 1, most, most)
    )
    _sort[(count + 1,)](
        slots, order, starts, experts, firsts, pairs, count, rows, most, **_sizes(pairs, count), num_warps=_WARPS
    )
    return order, starts, experts, firsts


def tiles_by_expert(slots: Tensor, count: int, rows: int) -> Tiles:
    """The same, or one token's pairs as they are."""
    if len(slots) == 1:
        return Tiles(None, None, slots.view(-1), None)
    return Tiles(*sort_by_expert(slots, count, rows))


_WARPS = 4


def _sizes(pairs: int, count: int) -> dict[str, int]:
    bins = max(32, power_of_2(count + 1))
    return {"BINS": bins, "CHUNK": _FEW if pairs <= _FEW else _MANY, "FILL": _FILL}


def variants() -> Iterator[Variant]:
    signature = dict.fromkeys(("slots", "order", "starts", "experts", "firsts"), "*i64")
    signature |= dict.fromkeys(("pairs", "count", "rows", "most"), "i32")
    for pairs, count in ((8, 128), (4096, 128), (4096, 8), (4096, 256)):
        yield Variant(_sort, signature, _sizes(pairs, count), _WARPS, divisible=("rows",))
