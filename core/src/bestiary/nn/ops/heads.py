"""Ops on a layer's heads before it attends: norms of queries and keys, rotation, and what goes into the cache.

Their references are made of the ops in force (`rms_norm`, `rotary_embedding`, `write_kv_cache`), so that who brings
faster ones of these needs none of those.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .attention import write_kv_cache
from .norm import gemma_rms_norm, rms_norm
from .registry import op
from .rotary import rotary_embedding


@dataclass(frozen=True, slots=True)
class QKNorm:
    """RMS norms of every head of the queries and of the keys.

    Attributes:
        query_weight, key_weight: ``[head_size]``; None where there is none.
        weight_is_offset: the weights are offsets from one (`gemma_rms_norm`).
    """

    query_weight: Tensor | None
    key_weight: Tensor | None
    eps: float
    weight_is_offset: bool = False


@op
def qk_norm_rope(
    query: Tensor,
    key: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    head_size: int,
    is_neox_style: bool,
    norm: QKNorm | None,
) -> tuple[Tensor, Tensor | None]:
    """Normalise each head, then rotate it; both round as the ops of their own do (arXiv 2302.05442, 2104.09864).

    Args:
        query, key: flat, ``[tokens, heads * head_size]``; key may be None. Neither is changed.
        cos, sin: as `rotary_embedding` takes them.
    """
    if norm is not None:
        query = _normed(query, norm.query_weight, norm, head_size)
        key = None if key is None else _normed(key, norm.key_weight, norm, head_size)
    return rotary_embedding(query, key, cos, sin, head_size, is_neox_style)


@op
def qk_norm_rope_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    is_neox_style: bool,
    norm: QKNorm | None,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    """`qk_norm_rope`, then store the keys and values as `write_kv_cache` does, divided by their scales.

    Args:
        query: ``[tokens, num_heads * head_size]``; key, value: ``[tokens, num_kv_heads * head_size]``. None is changed.
        kv_cache: ``[num_blocks, block_size, 2, num_kv_heads, head_size]``; slots: int64 ``[tokens]``.

    Returns:
        The queries, multiplied by `k_scale`, so that scores are those of undivided keys.
    """
    kv_heads, head_size = kv_cache.shape[-2:]
    turned, turned_key = qk_norm_rope(query, key, cos, sin, head_size, is_neox_style, norm)
    keys, values = (_by_head(each, kv_heads) for each in (key if turned_key is None else turned_key, value))
    if k_scale != 1.0:
        turned, keys = turned * k_scale, keys / k_scale
    write_kv_cache(kv_cache, keys, values if v_scale == 1.0 else values / v_scale, slots)
    return turned


def _normed(x: Tensor, weight: Tensor | None, norm: QKNorm, head_size: int) -> Tensor:
    heads = x.reshape(len(x), -1, head_size)
    if norm.weight_is_offset and weight is not None:
        return gemma_rms_norm(heads, weight, norm.eps).flatten(-2)
    return rms_norm(heads, weight, norm.eps).flatten(-2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.reshape(len(x), heads, -1)
