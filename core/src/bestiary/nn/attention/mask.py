"""Who sees whom, as a bias to the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.api.errors import EngineError

from .backend import AttentionSpec, AttentionType
from .metadata import AttentionMetadata


def is_causal(spec: AttentionSpec) -> bool:
    return spec.attn_type is AttentionType.DECODER


def is_cached(spec: AttentionSpec) -> bool:
    """Whether keys and values are read from a paged cache; otherwise they come with the queries."""
    return spec.attn_type in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)


def key_geometry(spec: AttentionSpec, metadata: AttentionMetadata) -> AttentionMetadata:
    """How keys and values fall into sequences: as the queries do, but for cross attention as the encoder's tokens."""
    if spec.attn_type is not AttentionType.ENCODER_DECODER:
        return metadata
    if metadata.encoder is None:
        raise EngineError("cross attention needs an encoder's tokens, and this step has none")
    return metadata.encoder


def first_visible(spec: AttentionSpec, position: int) -> int:
    """The first position that a causal query at `position` sees."""
    first = 0 if spec.sliding_window is None else max(0, position + 1 - spec.sliding_window)
    return first if spec.attention_chunk_size is None else max(first, position - position % spec.attention_chunk_size)


def score_bias(spec: AttentionSpec, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scaled scores: -inf where a query does not see a key, and ALiBi's slopes.

    A causal query sees keys up to itself, with a window only the last `sliding_window` of these, with chunks only its
    own; an encoder's sees all, with a window those nearer than `sliding_window` on both sides.

    Args:
        queries, keys: positions, ``[batch, t]`` and ``[batch, l]``.

    Returns:
        ``[batch, 1, 1, t, l]``, or ``[batch, num_kv_heads, group, t, l]`` with ALiBi; in `dtype`.
    """
    distance = keys[:, None, :] - queries[:, :, None]
    hidden = distance > 0 if is_causal(spec) else torch.zeros_like(distance, dtype=torch.bool)
    if spec.sliding_window is not None:
        hidden = hidden | (distance.abs() >= spec.sliding_window)
    if spec.attention_chunk_size is not None:
        size = spec.attention_chunk_size
        hidden = hidden | ((keys // size)[:, None, :] != (queries // size)[:, :, None])
    if spec.alibi_slopes is None:
        bias = torch.zeros(distance.shape, dtype=dtype, device=distance.device)[:, None, None]
    else:
        slopes = torch.tensor(spec.alibi_slopes, device=distance.device).view(spec.num_kv_heads, -1, 1, 1)
        bias = (slopes * distance[:, None, None]).to(dtype)
    return bias.masked_fill(hidden[:, None, None], -torch.inf)
