"""Ops on a paged KV cache of shape ``[num_blocks, block_size, rows, num_kv_heads, head_size]``: keys in row 0, values
in row 1, and where a layer keeps one row a token, that.

A slot is ``block * block_size + offset``. Whole-attention kernels are attention backends, not ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import op


@op
def write_kv_cache(kv_cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Store ``[tokens, num_kv_heads, head_size]`` keys and values at `slots`, rounded to the cache's dtype.

    In an fp8 cache what is too large becomes the largest number, and what is not finite NaN.
    """
    _write(kv_cache, torch.stack((key, value), 1), slots)


@op
def write_latent_cache(kv_cache: Tensor, latent: Tensor, slots: Tensor) -> None:
    """The same for a cache of one row a token: ``[tokens, num_kv_heads, head_size]``."""
    _write(kv_cache, latent[:, None], slots)


def _write(kv_cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    if kv_cache.dtype.itemsize == 1:
        largest = torch.finfo(kv_cache.dtype).max
        rows = rows.clamp(-largest, largest) + rows * 0
    kv_cache.flatten(0, 1)[slots] = rows if rows.dtype is kv_cache.dtype else rows.to(kv_cache.dtype)


@op
def gather_kv_cache(kv_cache: Tensor, slots: Tensor) -> Tensor:
    """The contents of `slots` (``[n]``), copied: ``[n, rows, num_kv_heads, head_size]``."""
    return kv_cache.flatten(0, 1).index_select(0, slots)
