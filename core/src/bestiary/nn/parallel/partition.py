"""Dividing sizes, layers and tensors among ranks."""

from __future__ import annotations

import torch

from bestiary.api.errors import UsageError


def divide(total: int, parts: int, what: str) -> int:
    """`total / parts`; a `UsageError` naming `what` where it does not divide."""
    if total % parts:
        raise UsageError(
            f"{what} = {total} cannot be divided among {parts} tensor-parallel ranks",
            field=what,
            value=total,
            limit=f"a multiple of {parts}",
            fix=f"choose a tensor-parallel size that divides {total}",
        )
    return total // parts


def pipeline_range(num_layers: int, rank: int, world_size: int) -> tuple[int, int]:
    """Layers `[start, end)` of pipeline stage `rank`.

    Layers that are left over go one each to the stages before the last, from its side: the first stage also embeds, the
    last also computes logits.
    """
    if world_size > num_layers:
        raise UsageError(
            f"{num_layers} layers cannot fill {world_size} pipeline stages",
            field="pipeline_parallel_size",
            value=world_size,
            limit=f"at most {num_layers}",
        )
    base, extra = divmod(num_layers, world_size)
    counts = [base] * world_size
    for k in range(extra):
        counts[world_size - 2 - k if world_size > 1 else 0] += 1
    start = sum(counts[:rank])
    return start, start + counts[rank]


def split_tensor_along_last_dim(tensor: torch.Tensor, num_partitions: int) -> tuple[torch.Tensor, ...]:
    """Equal parts of the last dimension, as views."""
    size = divide(tensor.shape[-1], num_partitions, "last dimension")
    return tuple(torch.split(tensor, size, dim=-1))
