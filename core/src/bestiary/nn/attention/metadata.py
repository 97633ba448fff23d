"""How a flat batch of tokens falls into sequences, and where their keys and values lie."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step's geometry. Sequence s owns query rows ``query_start[s] … query_start[s+1]-1``.

    Attributes:
        query_start: int32 ``[seqs + 1]``, cumulative query lengths.
        seq_lens: int32 ``[seqs]``, tokens of each sequence whose KV is valid after this step (context + queries).
        block_tables: int32 ``[seqs, max blocks]``; token i of sequence s lies in block
            ``block_tables[s, i // block_size]``. Unused entries are 0.
        slot_mapping: int64 ``[tokens]``: ``block * block_size + offset`` where each query token's KV is written.
        query_lens_host, seq_lens_host: the same lengths as Python integers, for code that loops on the host.
        max_query_len, max_seq_len: their maxima.
        num_decodes: how many leading sequences have exactly one query token (the runner puts them first).
        block_size: tokens a block.
        encoder: for cross attention, the same of each sequence's encoder tokens: those whose keys and values come with
            this step (possibly none), and all that lie in the cross-attention layers' caches after it.
        prompt_lens: int64 ``[seqs]``, tokens of each sequence's prompt: the same in every step, whatever part of the
            prompt it computes and however far the answer has come. None where whoever made this does not know.
        state_read, state_write: int64 ``[seqs]``, rows of layers' states: the one that holds a sequence's state before
            this step's first token (−1: it begins), and the one that must hold it after the last; never the same.
        derived: what layers and backends computed from this step's geometry and share among the layers (masks, page
            indices, rotary rows); each under a key of its own, dropped with the step.
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    query_lens_host: tuple[int, ...]
    seq_lens_host: tuple[int, ...]
    max_query_len: int
    max_seq_len: int
    num_decodes: int
    block_size: int
    encoder: AttentionMetadata | None = None
    prompt_lens: torch.Tensor | None = None
    state_read: torch.Tensor | None = None
    state_write: torch.Tensor | None = None
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
