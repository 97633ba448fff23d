"""The attention backend protocol, and what a layer asks of one.

A backend is stateless: the runner allocates the cache in the shape the backend names, the layer passes it back in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch

from .metadata import AttentionMetadata


class AttentionType(StrEnum):
    """Who attends to whom."""

    DECODER = "decoder"
    """Causal self-attention over the paged cache."""
    ENCODER = "encoder"
    """Bidirectional self-attention of an encoder in an encoder-decoder model; no cache."""
    ENCODER_ONLY = "encoder_only"
    """Bidirectional self-attention of an encoder-only model; no cache."""
    ENCODER_DECODER = "encoder_decoder"
    """Decoder queries over all keys and values of an encoder, kept in a paged cache of their own."""


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One layer's attention, all counts being this rank's own.

    Attributes:
        scale: multiplies q·k. sliding_window: a query sees itself and the `sliding_window - 1` tokens before it.
        logits_soft_cap: scores become ``cap * tanh(score / cap)`` (Gemma 2, arXiv 2408.00118).
        alibi_slopes: one per head; adds ``slope * (key position - query position)`` (arXiv 2108.12409).
        has_sinks: a learned logit per head joins the softmax's denominator (gpt-oss).
        cache_dtype: of the cache that it reads; None where nobody has said, then the activations'.
        attention_chunk_size: positions fall into chunks of so many, and a query sees none before its own (Llama 4).
        latent: a token keeps one row, which is key and value at once (multi-head latent attention).
        sink_len: learned keys and values that come before every sequence's own; the layer puts them there.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    sliding_window: int | None = None
    logits_soft_cap: float | None = None
    alibi_slopes: tuple[float, ...] | None = None
    has_sinks: bool = False
    attn_type: AttentionType = AttentionType.DECODER
    cache_dtype: torch.dtype | None = None
    attention_chunk_size: int | None = None
    latent: bool = False
    sink_len: int = 0


@dataclass(frozen=True, kw_only=True)
class KVCacheSpec:
    """What one layer keeps for each token: the engine asks the model for these, and sizes the cache by them.

    Keys and values of dtype int8 have an fp32 scale for each row of `head_size`; a backend that can keep such a cache
    finds a place for them among the bytes that a token has. Where they are `latent`, a token has one row for both.
    """

    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    sliding_window: int | None = None
    latent: bool = False

    @property
    def rows(self) -> int:
        """Of `head_size`, for each head that is kept."""
        return 1 if self.latent else 2

    @property
    def bytes_per_token(self) -> int:
        scale = torch.float32.itemsize if self.dtype is torch.int8 else 0
        return self.rows * self.num_kv_heads * (self.head_size * self.dtype.itemsize + scale)


SPECIAL = ("attention_chunk_size", "latent", "sink_len")
"""Fields of `AttentionSpec` that a backend must say it knows; the last two want a `SequenceBackend`."""


class AttentionBackend(Protocol):
    """An attention implementation. `why_not` is None where it can run such a layer, otherwise the reason.

    A backend may have more attributes: `dtypes`, of queries, where it does not take every one; `deterministic`, true
    where a row's bits do not depend on its batch; `recordable`, true where it reads nothing on the host but shapes
    (`bestiary.nn.graphs`); `reads_pages_only`, true where its cache has the shape that the op `write_kv_cache` takes
    and it attends to that alone, so that a layer may have written a step's keys and values before; `takes`, the names
    of those of `SPECIAL` that it knows, for a layer that sets another of them is not given to it.
    """

    name: str

    def why_not(self, device: str, spec: AttentionSpec) -> str | None: ...

    def cache_shape(self, spec: KVCacheSpec, num_blocks: int, block_size: int) -> Sequence[int]:
        """Shape of one layer's cache tensor (dtype `spec.dtype`)."""
        ...

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write this step's keys and values, then attend.

        Args:
            query: ``[tokens, num_heads, head_size]``.
            key, value: ``[tokens, num_kv_heads, head_size]``, or None where another layer wrote the cache; for cross
                attention those of the encoder tokens in `metadata.encoder`, or None where none come with this step.
            kv_cache: of `cache_shape`; empty for encoder types, whose keys and values are used as they come.
            sinks: ``[num_heads]`` or None.

        Returns:
            ``[tokens, num_heads, head_size]``, the dtype of `query`.
        """
        ...


@runtime_checkable
class SequenceBackend(AttentionBackend, Protocol):
    """One that also attends over keys and values that lie in no cache."""

    def attend_sequence(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sequence: int,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """The last ``len(query)`` tokens of one sequence over all its keys.

        Args:
            query: ``[t, num_heads, head_size]``. key, value: ``[l, num_kv_heads, head_size]``, l ≥ t.
            sequence: its number; what the backend derives for it (masks) is kept with the step's `metadata`.

        Returns:
            The shape and dtype of `query`.
        """
        ...
