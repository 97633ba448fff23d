"""Dividing sizes, layers and tensors among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from bestiary.api.errors import BestiaryError, UsageError

_noted: ContextVar[list[BestiaryError] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_refusals() -> Iterator[list[BestiaryError]]:
    """Meanwhile sizes that do not divide are rounded up, and the errors listed instead of raised: to tell them all."""
    noted: list[BestiaryError] = []
    entered = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(entered)


def refuse(error: BestiaryError) -> None:
    """Raise `error`, which says that sizes do not divide; under `noting_refusals` note it, and the caller goes on."""
    noted = _noted.get()
    if noted is None:
        raise error
    noted.append(error)


def divide(total: int, parts: int, what: str) -> int:
    """`total / parts`; a `UsageError` naming `what` where it does not divide."""
    if total % parts:
        refuse(
            UsageError(
                f"{what} = {total} cannot be divided among {parts} tensor-parallel ranks",
                field=what,
                value=total,
                limit=f"a multiple of {parts}",
                fix=f"choose a tensor-parallel size that divides {total}",
            )
        )
    return -(-total // parts)


def pipeline_range(num_layers: int, rank: int, world_size: int, layers: Sequence[int] | None = None) -> tuple[int, int]:
    """Layers `[start, end)` of pipeline stage `rank`; `layers` says how many each stage has, None divides them evenly.

    Layers that are left over go one each to the stages before the last, from its side: the first stage also embeds, the
    last also computes logits.
    """
    if world_size > num_layers:
        refuse(
            UsageError(
                f"{num_layers} layers cannot fill {world_size} pipeline stages",
                field="pipeline_parallel_size",
                value=world_size,
                limit=f"at most {num_layers}",
                fix=f"pipeline_parallel_size={num_layers} or less",
            )
        )
        return 0, num_layers
    counts = list(layers) if layers is not None else _evenly(num_layers, world_size)
    if len(counts) != world_size or sum(counts) != num_layers:
        refuse(
            UsageError(
                f"the model has {num_layers} layers",
                field="pipeline_layers",
                value=counts,
                limit=f"{world_size} numbers whose sum is {num_layers}",
            )
        )
        return 0, num_layers
    start = sum(counts[:rank])
    return start, start + counts[rank]


def _evenly(num_layers: int, stages: int) -> list[int]:
    base, extra = divmod(num_layers, stages)
    counts = [base] * stages
    for k in range(extra):
        counts[stages - 2 - k] += 1
    return counts


def split_tensor_along_last_dim(tensor: torch.Tensor, num_partitions: int) -> tuple[torch.Tensor, ...]:
    """Equal parts of the last dimension, as views."""
    size = divide(tensor.shape[-1], num_partitions, "last dimension")
    return tuple(torch.split(tensor, size, dim=-1))
