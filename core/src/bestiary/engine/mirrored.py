"""Numbers that are written on the host and read on a device, at places that stay."""

from __future__ import annotations

import numpy as np
import torch

_NONE = -1


class Mirrored:
    """Owned by whoever writes them.

    Attributes:
        host: an array; the device's own memory where they are not `apart`, otherwise pinned where the device is a GPU,
            so that `send` need not wait.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, apart: bool) -> None:
        self._source = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.host = self._source.numpy()
        self.device = self._source.to(device, copy=True) if apart else self._source

    def send(self, last: int | None = None) -> None:
        """Make the device's rows before `last` the host's; what is queued there afterwards reads them."""
        if self.device is not self._source:
            self.device[:last].copy_(self._source[:last], non_blocking=True)


class BlockTables:
    """The block tables of rows, each of at most `blocks` blocks, and what the device does not know of them yet.

    Args:
        changes: int64 ``[3, any]``, host memory that is sent with each step: the rows, columns and new entries that
            the device is to put into its tables (`place_rows`).
    """

    def __init__(self, rows: int, blocks: int, changes: np.ndarray, device: torch.device, apart: bool) -> None:
        self._tables = Mirrored((rows, blocks), torch.int32, device, apart)
        self._changes, self._apart = changes, apart
        self._held: list[tuple[int, ...]] = [()] * rows
        self._new: list[tuple[int, int, int]] = []

    @property
    def device(self) -> torch.Tensor:
        """int32 ``[rows, blocks]``."""
        return self._tables.device

    def hold(self, row: int, block_ids: tuple[int, ...]) -> None:
        """A row's blocks are these from now on. What the table has beyond them is nobody's."""
        held = self._held[row]
        if held == block_ids:
            return
        self._held[row] = block_ids
        first = len(held) if block_ids[: len(held)] == held else 0
        self._tables.host[row, first : len(block_ids)] = block_ids[first:]
        if self._apart:
            self._new += [(row, column, block) for column, block in enumerate(block_ids[first:], first)]

    def tell(self, rows: int) -> None:
        """Write what is new into `changes`; where that has too little room, send the first `rows` tables whole."""
        self._changes[0] = _NONE
        if len(self._new) > self._changes.shape[1]:
            self._tables.send(rows)
        elif self._new:
            self._changes[:, : len(self._new)] = np.array(self._new).T
        self._new.clear()
