"""The paged cache of the torch backends: its shape, and where a sequence's tokens lie in it."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.nn.ops.attention import gather_kv_cache

from .backend import KVCacheSpec
from .metadata import AttentionMetadata

Slots = Tensor | slice
"""Where tokens lie: slot numbers, or one run of slots, which can be read without a copy."""


def cache_shape(spec: KVCacheSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
    return (num_blocks, block_size, spec.rows, spec.num_kv_heads, spec.head_size)


def sequence_slots(metadata: AttentionMetadata, sequence: int) -> Tensor:
    """The slots of all tokens of one sequence, int64 ``[seq_len]``; computed once a step."""
    key = ("slots", sequence)
    slots: Tensor | None = metadata.derived.get(key)
    if slots is None:
        positions = torch.arange(metadata.seq_lens_host[sequence], device=metadata.block_tables.device)
        slots = slots_of(metadata, metadata.block_tables[sequence], positions)
        metadata.derived[key] = slots
    return slots


def slots_of(metadata: AttentionMetadata, tables: Tensor, positions: Tensor) -> Tensor:
    """The slots of `positions` (int64 ``[…, n]``) under block tables ``[…, max blocks]``."""
    size = metadata.block_size
    return tables.gather(-1, positions // size).long() * size + positions % size


def run_of(slots: Tensor) -> Slots:
    """`slots` as one slice if they are consecutive; unchanged if not, and on a device, where to look is to wait."""
    if slots.is_cpu and bool((slots.diff() == 1).all()):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return slots


def read(kv_cache: Tensor, slots: Slots, dtype: torch.dtype) -> Tensor:
    """``[n, rows, num_kv_heads, head_size]`` in `dtype`, keys first and values last: a view of the
    cache where `slots` is a run and dtypes agree."""
    pairs = kv_cache.flatten(0, 1)[slots] if isinstance(slots, slice) else gather_kv_cache(kv_cache, slots)
    return pairs if pairs.dtype is dtype else pairs.to(dtype)
