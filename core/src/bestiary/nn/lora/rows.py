"""Which adapter slot each row of a batch belongs to."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch

Groups = tuple[tuple[int, torch.Tensor], ...]


class SlotRows:
    """Row → slot, and slot → rows. Made once a step by the runner; layers that compute picked rows `pick` theirs.

    Attributes:
        slots: int64 ``[rows]``; −1 for a row without an adapter.
    """

    __slots__ = ("_groups", "slots")

    def __init__(self, slots: torch.Tensor, groups: Groups | None = None) -> None:
        self.slots = slots
        self._groups = groups

    @classmethod
    def of(cls, slots: Iterable[int], device: torch.device) -> SlotRows | None:
        """From numbers on the host; None where no row has an adapter."""
        host = torch.tensor(list(slots), dtype=torch.int64)
        groups = tuple((slot, rows.to(device)) for slot, rows in _grouped(host))
        return cls(host.to(device), groups) if groups else None

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def groups(self) -> Groups:
        """(slot, the indices of its rows, ascending), by slot; rows without an adapter are in none."""
        if self._groups is None:
            self._groups = _grouped(self.slots)
        return self._groups

    def pick(self, index: torch.Tensor) -> SlotRows:
        """The same for ``x[index]`` of rows ``x``."""
        return SlotRows(self.slots[index])

    def within(self, slots: Container[int]) -> SlotRows | None:
        """These rows, grouped by the named slots alone; None where no row has one of them."""
        groups = tuple(group for group in self.groups if group[0] in slots)
        return SlotRows(self.slots, groups) if groups else None


def _grouped(slots: torch.Tensor) -> Groups:
    found = sorted(set(slots.tolist()) - {-1})
    return tuple((slot, (slots == slot).nonzero().squeeze(1)) for slot in found)
