"""Backend "torch": `scaled_dot_product_attention` over pages, for any device torch runs on.

The leading decode rows go as one batch: their pages are gathered and padded to the longest with the sequence's own last
token (so that nobody's numbers can reach another sequence), and the heads that share a key are folded into query
rows, so that each key is read once. Other sequences go one by one, in blocks of query rows. What depends on the step
only (slots, masks) is computed by the first layer and kept with the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import pages
from .backend import SPECIAL, AttentionSpec
from .explicit import attend
from .mask import first_visible, is_cached, is_causal, key_geometry, score_bias
from .metadata import AttentionMetadata
from .paged import PagedBackend, bidirectional

_BLOCK_ROWS = 128
"""Query rows a call where a mask is given: bounds the mask's memory, and skips most keys that no row sees."""
_MASKED_LENGTHS = range(192, 1025)
"""Whole prompts of these lengths are a quarter faster with masks, block by block, than with `is_causal` at once."""
_KEPT_MASK_ELEMENTS = 1 << 22
"""A mask larger than this is made anew by each layer, which then costs little beside the attention itself."""


@dataclass(frozen=True, slots=True)
class _Decodes:
    """The step's decode rows under one window: slots of ``count * length`` tokens, padded, and who sees them."""

    count: int
    length: int
    slots: pages.Slots
    bias: Tensor | None


class TorchBackend(PagedBackend):
    name = "torch"
    takes = SPECIAL

    def marked(self, key: Tensor, value: Tensor) -> Tensor:
        """NaN where a key is NaN or infinite: the value reaches whoever sees it, the fused kernels' score would not."""
        return value + key * 0

    def compute(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        decodes = metadata.num_decodes if is_causal(spec) else 0
        bad = query * 0  # NaN where a query is NaN or infinite: the fused kernels answer such a row with zeros
        parts = []
        if decodes:
            parts.append(_decode(query[:decodes], kv_cache, metadata, spec, sinks))
        start = decodes
        for sequence in range(decodes, len(metadata.query_lens_host)):
            rows = slice(start, start + metadata.query_lens_host[sequence])
            keys, values, first = _keys_and_values(sequence, rows, query, key, value, kv_cache, metadata, spec)
            parts.append(_attend_sequence(query[rows], keys, values, first, sequence, metadata, spec, sinks))
            start = rows.stop
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).add(bad)

    def attend_sequence(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sequence: int,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        """As `SequenceBackend.attend_sequence`."""
        return _attend_sequence(query, key, value, 0, sequence, metadata, spec, sinks).add(query * 0)


def _decode(
    query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """The decode rows, ``[count, num_heads, head_size]``, as one batch."""
    kept = ("torch.decodes", *_bias_key(spec, query.dtype))
    step: _Decodes | None = metadata.derived.get(kept)
    if step is None:
        step = metadata.derived[kept] = _plan_decodes(query, metadata, spec)
    pairs = pages.read(kv_cache, step.slots, query.dtype)
    pairs = pairs.view(step.count, step.length, -1, spec.num_kv_heads, spec.head_size).permute(2, 0, 3, 1, 4)
    keys, values = pairs[0], pairs[-1]
    folded = query.reshape(step.count, spec.num_kv_heads, -1, spec.head_size)
    if _needs_explicit(spec, query.dtype):
        return attend(folded.unsqueeze(3), keys, values, step.bias, spec, sinks).view(query.shape)
    mask = None if step.bias is None else step.bias.squeeze(3)
    out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=spec.scale)
    return out.reshape(query.shape)


def _plan_decodes(query: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> _Decodes:
    lengths = metadata.seq_lens_host[: len(query)]
    firsts = [first_visible(spec, length - 1) for length in lengths]
    longest = max(length - first for length, first in zip(lengths, firsts, strict=True))
    even = all(length - first == longest for length, first in zip(lengths, firsts, strict=True))
    last = torch.tensor(lengths, device=query.device)[:, None] - 1
    keys = torch.tensor(firsts, device=query.device)[:, None] + torch.arange(longest, device=query.device)
    slots = pages.slots_of(metadata, metadata.block_tables[: len(query)], torch.minimum(keys, last)).flatten()
    plain = even and spec.alibi_slopes is None
    bias = None if plain else score_bias(spec, last, keys, _bias_dtype(spec, query.dtype))
    return _Decodes(len(query), longest, pages.run_of(slots) if len(query) == 1 else slots, bias)


def _keys_and_values(
    sequence: int,
    rows: slice,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    kv_cache: Tensor,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
) -> tuple[Tensor, Tensor, int]:
    """What one sequence's queries see, ``[l, num_kv_heads, head_size]`` each, and the position it begins at."""
    if not is_cached(spec):
        return *bidirectional(key, value, rows), 0
    first = 0
    if is_causal(spec):
        count, length = metadata.query_lens_host[sequence], metadata.seq_lens_host[sequence]
        fresh = key is not None and value is not None and kv_cache.dtype is key.dtype
        if fresh and count == length:
            return *bidirectional(key, value, rows), 0
        first = first_visible(spec, length - count)
    keyed, kept = key_geometry(spec, metadata), ("torch.slots", sequence, first)
    slots = keyed.derived.get(kept)
    if slots is None:
        slots = keyed.derived[kept] = pages.run_of(pages.sequence_slots(keyed, sequence)[first:])
    pairs = pages.read(kv_cache, slots, query.dtype)
    return pairs[:, 0], pairs[:, -1], first


def _attend_sequence(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first: int,
    sequence: int,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    sinks: Tensor | None,
) -> Tensor:
    """The last ``len(query)`` tokens of one sequence over its keys from position `first` on."""
    count, end = len(query), first + len(keys)
    heads, by_head = query.transpose(0, 1)[None], (keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
    if _needs_no_mask(spec, count, len(keys)):
        causal = is_causal(spec) and count > 1
        out = F.scaled_dot_product_attention(heads, *by_head, is_causal=causal, scale=spec.scale, enable_gqa=True)
        return out[0].transpose(0, 1)
    parts = []
    for rows, seen in _blocks(spec, count, first, end):
        bias = _bias(metadata, sequence, spec, (end - count + rows.start, end - count + rows.stop), seen, query)
        here = slice(seen[0] - first, seen[1] - first)
        block_keys, block_values = by_head[0][:, :, here], by_head[1][:, :, here]
        if _needs_explicit(spec, query.dtype):
            grouped = heads[:, :, rows].reshape(1, spec.num_kv_heads, -1, len(query[rows]), spec.head_size)
            out = attend(grouped, block_keys, block_values, bias, spec, sinks).flatten(1, 2)
        else:
            out = F.scaled_dot_product_attention(
                heads[:, :, rows], block_keys, block_values, bias.flatten(1, 2), scale=spec.scale, enable_gqa=True
            )
        parts.append(out[0].transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blocks(spec: AttentionSpec, count: int, first: int, end: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Blocks of query rows, each with the range of positions that it sees."""
    for start in range(0, count, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, count))
        if is_causal(spec):
            yield rows, (max(first, first_visible(spec, end - count + rows.start)), end - count + rows.stop)
        else:
            yield rows, (first, end)


def _bias(
    metadata: AttentionMetadata,
    sequence: int,
    spec: AttentionSpec,
    queries: tuple[int, int],
    keys: tuple[int, int],
    like: Tensor,
) -> Tensor:
    dtype = _bias_dtype(spec, like.dtype)
    kept = ("torch.bias", sequence, queries, keys, *_bias_key(spec, like.dtype))
    bias: Tensor | None = metadata.derived.get(kept)
    if bias is None:
        here, there = (torch.arange(*span, device=like.device)[None] for span in (queries, keys))
        bias = score_bias(spec, here, there, dtype)
        if bias.numel() <= _KEPT_MASK_ELEMENTS:
            metadata.derived[kept] = bias
    return bias


def _needs_explicit(spec: AttentionSpec, dtype: torch.dtype) -> bool:
    """What the fused kernel has no argument for, and ALiBi where a mask in `dtype` could not tell neighbours apart."""
    coarse = spec.alibi_slopes is not None and dtype is not torch.float32
    return coarse or spec.logits_soft_cap is not None or spec.has_sinks


def _bias_dtype(spec: AttentionSpec, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if _needs_explicit(spec, dtype) else dtype


def _bias_key(spec: AttentionSpec, dtype: torch.dtype) -> tuple[object, ...]:
    """Layers that agree in this see the same bias."""
    heads = spec.alibi_slopes and spec.num_kv_heads
    return (
        spec.attn_type,
        spec.sliding_window,
        spec.attention_chunk_size,
        spec.alibi_slopes,
        heads,
        _bias_dtype(spec, dtype),
    )


def _needs_no_mask(spec: AttentionSpec, count: int, length: int) -> bool:
    """Whether `is_causal`, or nothing, says who sees whom: a whole sequence within the window, or one last row."""
    if spec.logits_soft_cap is not None or spec.has_sinks or spec.alibi_slopes is not None:
        return False
    within = all(size is None or length <= size for size in (spec.sliding_window, spec.attention_chunk_size))
    whole = count == length and length not in _MASKED_LENGTHS
    return within and (not is_causal(spec) or count == 1 or whole)
