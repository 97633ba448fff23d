"""Which adapter slot each row of a batch belongs to."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bestiary.nn.sending import send

from .runs import Runs

Groups = tuple[tuple[int, torch.Tensor], ...]


class SlotRows:
    """Row → slot, and slot → rows. Made once a step by the runner; layers that compute picked rows `pick` theirs.

    Attributes:
        slots: int64 ``[rows]``; −1 for a row without an adapter.
        runs: the same as the host knows it; None where only the device does.
    """

    __slots__ = ("_groups", "_named", "runs", "slots")

    def __init__(
        self, slots: torch.Tensor, groups: Groups | None = None, runs: Runs | None = None,
        named: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self.slots = slots
        self.runs = runs
        self._groups = groups
        self._named = runs.slots if named is None and runs is not None else named

    @classmethod
    def of(cls, slots: Sequence[int] | NDArray[np.int64], device: torch.device) -> SlotRows | None:
        """From numbers on the host; None where no row has an adapter."""
        host = np.array(slots, dtype=np.int64)
        runs = Runs.of(host, device)
        return cls(send(host, device), runs=runs) if runs.found else None

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def groups(self) -> Groups:
        """(slot, the indices of its rows, ascending), by slot; rows without an adapter are in none."""
        if self._groups is None and self.runs is not None:
            self._groups = tuple((slot, self.runs.rows(slot)) for slot in self._named or ())
        elif self._groups is None:
            self._groups = _grouped(self.slots)
        return self._groups

    def pick(self, index: torch.Tensor) -> SlotRows:
        """The same for ``x[index]`` of rows ``x``; the host knows it where all rows have one slot."""
        return SlotRows(self.slots[index], runs=None if self.runs is None else self.runs.pick(len(index)))

    def within(self, slots: Container[int]) -> SlotRows | None:
        """These rows, grouped by the named slots alone; None where no row has one of them."""
        if self.runs is not None:
            named = tuple(slot for slot in self._named or () if slot in slots)
            return SlotRows(self.slots, runs=self.runs, named=named) if named else None
        groups = tuple(group for group in self.groups if group[0] in slots)
        return SlotRows(self.slots, groups) if groups else None


def _grouped(slots: torch.Tensor) -> Groups:
    found = sorted(set(slots.tolist()) - {-1})
    return tuple((slot, (slots == slot).nonzero().squeeze(1)) for slot in found)
