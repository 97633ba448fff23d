"""Rows that follow one another and share an adapter slot, as the host knows them, and tiles of them for a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bestiary.nn.sending import send


class Run(NamedTuple):
    """Rows `first` … `last` − 1, which all have `slot`."""

    slot: int
    first: int
    last: int


class Runs:
    """The runs of a step. All layers of it share one object, so that what is derived is made and sent once a step.

    Attributes:
        found: in the order of rows; rows without an adapter are in none.
        count: all rows, those without an adapter included. adapted: rows with one. slots: those that occur, ascending.
    """

    def __init__(self, found: Sequence[Run], count: int, device: torch.device) -> None:
        self.found = tuple(found)
        self.count = count
        self.adapted = sum(run.last - run.first for run in self.found)
        self.slots = tuple(sorted({run.slot for run in self.found}))
        self._device = device
        self._rows: dict[int, torch.Tensor] = {}
        self._tiles: dict[int, torch.Tensor] = {}

    @classmethod
    def of(cls, slots: NDArray[np.int64], device: torch.device) -> Runs:
        """From each row's slot, −1 for a row without an adapter; tiles and rows are wanted on `device`."""
        edges = np.flatnonzero(np.diff(slots)) + 1
        bounds = [0, *edges.tolist(), len(slots)]
        runs = (Run(int(slots[first]), first, last) for first, last in pairwise(bounds) if first < last)
        return cls([run for run in runs if run.slot >= 0], len(slots), device)

    def rows(self, slot: int) -> torch.Tensor:
        """int64, the rows that have `slot`, ascending, on the device."""
        if slot not in self._rows:
            ranges = [np.arange(run.first, run.last) for run in self.found if run.slot == slot]
            self._rows[slot] = send(np.concatenate(ranges).astype(np.int64), self._device)
        return self._rows[slot]

    def tile_count(self, height: int) -> int:
        """How many `tiles` there are, without making them."""
        return sum(-(-(run.last - run.first) // height) for run in self.found)

    def tiles(self, height: int) -> torch.Tensor:
        """int32 ``[tiles, 3]`` on the device: slot, first row and one past the last of at most `height` rows."""
        if height not in self._tiles:
            tiles = [
                (run.slot, first, min(first + height, run.last))
                for run in self.found
                for first in range(run.first, run.last, height)
            ]
            self._tiles[height] = send(np.array(tiles, np.int32).reshape(-1, 3), self._device)
        return self._tiles[height]

    def pick(self, count: int) -> Runs | None:
        """The runs of any `count` of these rows; None where that depends on which ones."""
        if len(self.found) != 1 or self.adapted != self.count:
            return None
        return Runs([Run(self.slots[0], 0, count)] if count else [], count, self._device)
