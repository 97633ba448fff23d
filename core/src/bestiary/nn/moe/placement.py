"""Where experts lie: which rank holds which, and how often. Plain numbers, no tensors.

A checkpoint's experts are *logical*; *physical* ones are their copies, numbered through all ranks, `num_local` a rank.
Without expert parallelism one rank has all of them once, and both numberings are the same. Spare copies of much-used
experts and their moving about (EPLB) change `physical_to_logical` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bestiary.api.errors import UsageError
from bestiary.nn.parallel.partition import refuse


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """physical_to_logical: the logical expert that each physical one is a copy of; rank r holds the r-th equal part."""

    num_logical: int
    num_ranks: int
    physical_to_logical: tuple[int, ...]

    def __post_init__(self) -> None:
        if missing := sorted(set(range(self.num_logical)) - set(self.physical_to_logical)):
            raise UsageError("experts without a place", field="physical_to_logical", value=missing[:8])
        if len(self.physical_to_logical) % self.num_ranks:
            held, copies = len(self.physical_to_logical), len(self.physical_to_logical) - self.num_logical
            refuse(
                UsageError(
                    f"{held} experts cannot be divided among {self.num_ranks} ranks",
                    field="num_redundant_experts", value=copies,
                    limit=f"experts and copies together a multiple of {self.num_ranks}",
                    fix=f"num_redundant_experts={copies + -held % self.num_ranks}",
                )
            )  # fmt: skip

    @classmethod
    def in_order(cls, num_logical: int, num_ranks: int = 1, num_redundant: int = 0) -> ExpertPlacement:
        """The first placement: experts in order, then the first `num_redundant` of them once more."""
        copies = (index % num_logical for index in range(num_logical + num_redundant))
        return cls(num_logical, num_ranks, tuple(copies))

    @property
    def num_physical(self) -> int:
        return len(self.physical_to_logical)

    @property
    def num_redundant(self) -> int:
        return self.num_physical - self.num_logical

    @property
    def num_local(self) -> int:
        return self.num_physical // self.num_ranks

    def on_rank(self, rank: int) -> Sequence[int]:
        """The logical expert in each of the rank's slots."""
        return self.physical_to_logical[rank * self.num_local : (rank + 1) * self.num_local]

    def copies(self) -> list[list[int]]:
        """The physical experts of each logical one, in ascending order."""
        found: list[list[int]] = [[] for _ in range(self.num_logical)]
        for physical, logical in enumerate(self.physical_to_logical):
            found[logical].append(physical)
        return found
