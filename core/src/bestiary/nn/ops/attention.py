"""Ops on a paged KV cache of shape ``[num_blocks, block_size, 2, num_kv_heads, head_size]``: keys at 0, values at 1.

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
    pairs = torch.stack((key, value), 1)
    if kv_cache.dtype.itemsize == 1:
        largest = torch.finfo(kv_cache.dtype).max
        pairs = pairs.clamp(-largest, largest) + pairs * 0
    kv_cache.flatten(0, 1)[slots] = pairs if pairs.dtype is kv_cache.dtype else pairs.to(kv_cache.dtype)


@op
def gather_kv_cache(kv_cache: Tensor, slots: Tensor) -> Tensor:
    """The contents of `slots` (``[n]``), copied: ``[n, 2, num_kv_heads, head_size]``."""
    return kv_cache.flatten(0, 1).index_select(0, slots)
