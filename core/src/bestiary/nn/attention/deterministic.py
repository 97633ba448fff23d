"""Backend "deterministic": a token's result is bitwise independent of the batch, of chunking and of the prefix cache.

Every query token is computed alone, by a kernel call whose shapes and memory layout depend on its position only. Slow:
one call a token and layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import pages
from .backend import SPECIAL, AttentionSpec
from .explicit import attend
from .mask import first_visible, is_cached, is_causal, key_geometry, score_bias
from .metadata import AttentionMetadata
from .paged import PagedBackend, bidirectional


class DeterministicBackend(PagedBackend):
    name = "deterministic"
    takes = SPECIAL
    deterministic = True

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
        keyed = key_geometry(spec, metadata)
        output = torch.empty_like(query)
        row = 0
        for sequence, (count, length) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
            for position in range(length - count, length):
                if is_cached(spec):
                    first = first_visible(spec, position)
                    end = position + 1 if is_causal(spec) else keyed.seq_lens_host[sequence]
                    slots = pages.sequence_slots(keyed, sequence)[first:end]
                    pairs = pages.read(kv_cache, slots, query.dtype)
                    keys, values = pairs[:, 0], pairs[:, -1]
                else:
                    first, start = 0, row - position
                    keys, values = bidirectional(key, value, slice(start, start + length))
                output[row] = _attend_token(query[row], keys, values, first, position, spec, sinks)
                row += 1
        return output

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
        """As `SequenceBackend.attend_sequence`, a causal one's."""
        output = torch.empty_like(query)
        for row, position in enumerate(range(len(key) - len(query), len(key))):
            seen = slice(first_visible(spec, position), position + 1)
            output[row] = _attend_token(query[row], key[seen], value[seen], seen.start, position, spec, sinks)
        return output


def _attend_token(
    query: Tensor, keys: Tensor, values: Tensor, first: int, position: int, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """One token, ``[num_heads, head_size]``, over keys that begin at position `first`.

    Keys and values are laid out anew, head by head, so that no kernel can choose its order of additions by the
    strides or the alignment of what it was given.
    """
    bias = None
    if spec.alibi_slopes is not None or not is_causal(spec):
        places = torch.arange(first, first + len(keys), device=query.device)[None]
        bias = score_bias(spec, torch.full_like(places[:, :1], position), places, torch.float32)
    grouped = query.clone().view(1, spec.num_kv_heads, -1, 1, spec.head_size)
    out = attend(grouped, _by_head(keys), _by_head(values), bias, spec, sinks)
    return out.view(query.shape)


def _by_head(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None].clone(memory_format=torch.contiguous_format)
