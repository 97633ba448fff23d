"""Backend "reference": the oracle. One sequence after another, written out in fp32, everything supported."""

from __future__ import annotations

import torch
from torch import Tensor

from . import pages
from .backend import SPECIAL, AttentionSpec, AttentionType
from .explicit import attend
from .mask import is_cached, key_geometry, score_bias
from .metadata import AttentionMetadata
from .paged import PagedBackend, bidirectional


class ReferenceBackend(PagedBackend):
    name = "reference"
    takes = SPECIAL

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
        start = 0
        for sequence, count in enumerate(metadata.query_lens_host):
            rows = slice(start, start + count)
            if is_cached(spec):
                pairs = pages.read(kv_cache, pages.sequence_slots(keyed, sequence), query.dtype)
                keys, values = pairs[:, 0], pairs[:, -1]
            else:
                keys, values = bidirectional(key, value, rows)
            output[rows] = _attend_one(query[rows], keys, values, spec, sinks)
            start += count
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
        """As `SequenceBackend.attend_sequence`."""
        return _attend_one(query, key, value, spec, sinks)


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec, sinks: Tensor | None) -> Tensor:
    """The last ``len(query)`` tokens of one sequence over all its keys; everything ``[tokens, heads, head_size]``."""
    count, length = len(query), len(keys)
    bias = None
    if spec.attn_type is not AttentionType.ENCODER_DECODER:
        positions = torch.arange(length, device=query.device)[None]
        bias = score_bias(spec, positions[:, length - count :], positions, torch.float32)
    grouped = query.view(1, count, spec.num_kv_heads, -1, spec.head_size).permute(0, 2, 3, 1, 4)
    out = attend(grouped, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], bias, spec, sinks)
    return out.permute(0, 3, 1, 2, 4).reshape(query.shape)
