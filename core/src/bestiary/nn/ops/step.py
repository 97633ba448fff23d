"""Ops on the input of a step."""

from __future__ import annotations

from torch import Tensor

from .registry import op


@op
def place_rows(
    input_ids: Tensor,
    positions: Tensor,
    sources: Tensor,
    drawn: Tensor | None,
    seq_lens: Tensor,
    block_tables: Tensor,
    changes: Tensor,
) -> None:
    """Complete what the rows of a decode step read, in place: all that follows from numbers that are on the device.

    Args:
        input_ids, positions, sources: int64 ``[rows]``. Where a source is not negative, the id becomes that entry of
            `drawn`, int64 ``[any]``, the ids that an earlier step drew; None where every id is known.
        seq_lens: int32 ``[rows]``; becomes the positions plus one.
        block_tables: int32 ``[at least rows, blocks]``.
        changes: int64 ``[3, any]``, contiguous: the row, column and new value of entries of `block_tables`, each entry
            once; a row of −1 is no change.
    """
    seq_lens.copy_(positions + 1)
    if drawn is not None:
        known = sources < 0
        input_ids.copy_(input_ids.where(known, drawn[sources.clamp_min(0)]))
    rows, columns, blocks = changes[:, changes[0] >= 0]
    block_tables[rows, columns] = blocks.to(block_tables.dtype)
