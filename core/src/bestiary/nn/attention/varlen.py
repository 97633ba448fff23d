"""Backend "varlen": torch's own FlashAttention over pages (`torch.nn.attention.varlen`), for who asks for it by name.

Its kernels want large pages, and are right over pages only with one split, so that few sequences leave most of a GPU
idle; "triton" has neither limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.api.errors import UsageError

from .backend import AttentionSpec, KVCacheSpec
from .metadata import AttentionMetadata
from .paged import PagedBackend
from .plain import DTYPES, keys_and_values, keys_before, why_not_plain

PAGE_SIZE = 256
"""FlashAttention 2 takes pages of multiples of this."""
_MOST_CHANNELS = 256
_SPLITS = 1
"""With more, rows of all sequences but the first are not written where keys lie in pages."""


class VarlenBackend(PagedBackend):
    """Every sequence of a step in one call: fp32 sums and softmax, weights rounded to the queries' dtype."""

    name = "varlen"
    reads_pages_only = True
    dtypes = DTYPES

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        if reason := why_not_plain(device, spec):
            return reason
        if spec.logits_soft_cap is not None:
            return "has no soft cap"
        if spec.head_size > _MOST_CHANNELS or spec.head_size % 8:
            return f"for heads of up to {_MOST_CHANNELS} channels, in multiples of 8"
        return None if takes_pages() else f"torch {torch.__version__} has no varlen_attn over pages"

    def cache_shape(self, spec: KVCacheSpec, num_blocks: int, block_size: int) -> Sequence[int]:
        """Raises `UsageError` where blocks are no pages that the kernels can read."""
        if block_size % PAGE_SIZE:
            raise UsageError(
                "the attention backend varlen reads larger blocks", field="block_size", value=block_size,
                limit=f"a multiple of {PAGE_SIZE}", fix=f"block_size={PAGE_SIZE}, or another attention_backend",
            )  # fmt: skip
        return super().cache_shape(spec, num_blocks, block_size)

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
        from torch.nn.attention.varlen import varlen_attn

        keys, values = keys_and_values(kv_cache, query)
        out: Tensor = varlen_attn(
            query, keys, values, metadata.query_start, _key_start(metadata), metadata.max_query_len,
            metadata.max_seq_len, scale=spec.scale, window_size=(keys_before(spec), 0),
            enable_gqa=spec.num_heads != spec.num_kv_heads, seqused_k=metadata.seq_lens,
            block_table=metadata.block_tables, num_splits=_SPLITS,
        )  # type: ignore[assignment]  # fmt: skip
        return out


@cache
def takes_pages() -> bool:
    """Whether this torch's `varlen_attn` has arguments for pages."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"block_table", "seqused_k", "num_splits", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _key_start(metadata: AttentionMetadata) -> Tensor:
    """int32 ``[seqs + 1]``, cumulative lengths; computed once a step."""
    start: Tensor | None = metadata.derived.get("varlen.key_start")
    if start is None:
        start = F.pad(metadata.seq_lens.cumsum(0, dtype=torch.int32), (1, 0))
        metadata.derived["varlen.key_start"] = start
    return start
