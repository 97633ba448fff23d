"""Adding what adapters say: ``out += B (A x)``, row by row with the factors of the row's own slot.

Rows go slot by slot; a row without an adapter is in no group, gets nothing and costs nothing. Both products are made in
fp32, and their result is rounded once, when it is added. The deterministic version makes them in fixed tiles, so that a
row's bits do not depend on who else has the same adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from .linear import FIXED_TILE as LINEAR
from .linear import fixed_tile_linear
from .registry import Implementation, op

if TYPE_CHECKING:
    from bestiary.nn.lora.rows import SlotRows

Product = Callable[[Tensor, Tensor], Tensor]


@op
def add_lora(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """`out`, to which each row's ``B (A x)`` was added in place.

    Args:
        out: ``[rows, …, sum(sizes)]``. x: ``[rows, …, in]``.
        a: ``[slots, shards, rank, in]``: a fused layer's parts have a first factor each. b: ``[slots, sum(sizes),
            rank]``, scaled already.
        sizes: the outputs of each shard. ranks: how much of `rank` a slot uses; the rest is zero. Slots that it does
            not name hold nothing.
    """
    return _add(out, x, a, b, sizes, rows, ranks, linear)


@op
def add_lora_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """The same for an embedding, whose first factor is a table.

    Args:
        out: ``[rows, …, hidden]``. ids: int64 ``[rows, …]``. a: ``[slots, vocabulary, rank]``. b: ``[slots, hidden,
            rank]``, scaled already.
    """
    return _add_embedding(out, ids, a, b, rows, ranks, linear)


def _add(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int],
    product: Product,
) -> Tensor:  # fmt: skip
    for slot, index in rows.groups:
        if slot not in ranks:
            continue
        rank = ranks[slot]
        inner = product(x[index].float(), a[slot, :, :rank].flatten(0, 1).float())
        shards = torch.split(b[slot, :, :rank].float(), list(sizes))
        firsts = torch.split(inner, rank, -1)
        parts = [product(first.contiguous(), second) for first, second in zip(firsts, shards, strict=True)]
        out.index_add_(0, index, torch.cat(parts, -1).to(out.dtype))
    return out


def _add_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int], product: Product
) -> Tensor:
    for slot, index in rows.groups:
        if slot not in ranks:
            continue
        rank = ranks[slot]
        inner = a[slot, :, :rank][ids[index]].float()
        out.index_add_(0, index, product(inner, b[slot, :, :rank].float()).to(out.dtype))
    return out


def _fixed_tiles(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    return _add(out, x, a, b, sizes, rows, ranks, fixed_tile_linear)


def _fixed_tiles_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    return _add_embedding(out, ids, a, b, rows, ranks, fixed_tile_linear)


FIXED_TILE = Implementation("fixed_tile", _fixed_tiles, LINEAR.why_not, LINEAR.priority)
FIXED_TILE_EMBEDDING = Implementation("fixed_tile", _fixed_tiles_embedding, LINEAR.why_not, LINEAR.priority)
