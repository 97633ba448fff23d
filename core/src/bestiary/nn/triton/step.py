"""The input of a decode step, completed on the device in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv
from .variants import Variant

_BLOCK = 128


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    input_ids, positions, sources, drawn, seq_lens, tables, changes, rows, changed, table_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """`BLOCK` rows, and as many changes of block tables."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = at < rows
    position = tl.load(positions + at, mask=within, other=0)
    tl.store(seq_lens + at, (position + 1).to(tl.int32), mask=within)
    if drawn is not None:
        source = tl.load(sources + at, mask=within, other=-1)
        unknown = source >= 0
        tl.store(input_ids + at, tl.load(drawn + source, mask=unknown, other=0), mask=unknown)
    there = at < changed
    row = tl.load(changes + at, mask=there, other=-1)
    column = tl.load(changes + changed + at, mask=there, other=0)
    block = tl.load(changes + 2 * changed + at, mask=there, other=0)
    tl.store(tables + row * table_stride + column, block.to(tl.int32), mask=row >= 0)


def place_rows(
    input_ids: Tensor, positions: Tensor, sources: Tensor, drawn: Tensor | None, seq_lens: Tensor,
    block_tables: Tensor, changes: Tensor,
) -> None:  # fmt: skip
    """As `bestiary.nn.ops.step.place_rows`. All but `block_tables` are contiguous."""
    rows, changed = len(input_ids), changes.shape[1]
    if rows or changed:
        _place[(cdiv(max(rows, changed), _BLOCK),)](
            input_ids, positions, sources, drawn, seq_lens, block_tables, changes, rows, changed,
            block_tables.stride(0), BLOCK=_BLOCK,
        )  # fmt: skip


def variants() -> Iterator[Variant]:
    signature = dict.fromkeys(("input_ids", "positions", "sources", "drawn", "changes"), "*i64")
    signature |= dict.fromkeys(("seq_lens", "tables"), "*i32")
    signature |= dict.fromkeys(("rows", "changed", "table_stride"), "i32")
    for absent in ((), ("drawn",)):
        yield Variant(_place, signature, {"BLOCK": _BLOCK, **dict.fromkeys(absent)})
