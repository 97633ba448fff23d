"""Which groups a rank belongs to, and under which names their members meet: numbers alone, no connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from bestiary.api.config import ParallelConfig
from bestiary.nn.parallel import Group, Groups


def groups_of(parallel: ParallelConfig, make: Callable[[int, int], Group] = Group) -> Groups:
    """The groups of rank `parallel.rank`; those of several ranks are made by ``make(place, size)``."""

    def group(place: int, size: int) -> Group:
        return Group() if size == 1 else make(place, size)

    tensor = group(parallel.tensor_parallel_rank, parallel.tensor_parallel_size)
    return Groups(
        tensor=tensor,
        pipeline=group(parallel.pipeline_parallel_rank, parallel.pipeline_parallel_size),
        expert=tensor if parallel.enable_expert_parallel else Group(),
        data=group(parallel.data_parallel_rank, parallel.data_parallel_size),
    )


def connected_groups(parallel: ParallelConfig, groups: Groups) -> list[tuple[str, Group]]:
    """The groups that tensors go through, each with a name that its members share and nobody else has."""
    copy, stage, place = (
        parallel.data_parallel_rank, parallel.pipeline_parallel_rank, parallel.tensor_parallel_rank
    )  # fmt: skip
    named = [(f"tensor/{copy}/{stage}", groups.tensor), (f"pipeline/{copy}/{place}", groups.pipeline)]
    return [(name, group) for name, group in named if group.world_size > 1]


def parts_of(parallel: ParallelConfig) -> Iterator[tuple[ParallelConfig, tuple[int, ...]]]:
    """Every part that the model falls into, as the first rank that holds it sees it, and all ranks that do.

    Copies of the model (data parallelism) hold the same parts.
    """
    for first in range(parallel.world_size):
        ranks = tuple(range(first, parallel.world_size_across_dp, parallel.world_size))
        yield replace(parallel, rank=first), ranks
