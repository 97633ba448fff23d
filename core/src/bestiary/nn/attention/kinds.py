"""Layers that differ from `Attention` in who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.ops.attention import write_kv_cache

from . import pages
from .backend import AttentionSpec, AttentionType, SequenceBackend
from .base import refuse
from .layer import Attention
from .metadata import AttentionMetadata


class ChunkedLocalAttention(Attention):
    """Positions fall into chunks, and a token sees those of its own chunk up to itself (Llama 4)."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        attention_chunk_size: int,
        num_kv_heads: int | None = None,
        **options: Any,
    ) -> None:
        """As `Attention`, with the length of a chunk."""
        super().__init__(num_heads, head_size, scale, num_kv_heads, **options)
        if attention_chunk_size < 1:
            raise ConfigError(
                "a chunk has tokens", field="attention_chunk_size", value=attention_chunk_size, limit="at least 1"
            )
        self.attention_chunk_size = attention_chunk_size
        self.spec = replace(self.spec, attention_chunk_size=attention_chunk_size)


class PrefillPrefixLMAttention(Attention):
    """A prompt's tokens see the whole prompt; an answer's tokens all before them (prefix language models).

    So a prompt has to be computed in one step, and its keys and values are no other prompt's, whatever it begins with.
    """

    reads_ahead = True
    reads_own_keys = True

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, **options: Any
    ) -> None:
        """As `Attention`, of a decoder that shares nobody's cache."""
        if options.get("attn_type") == AttentionType.DECODER:
            del options["attn_type"]
        names = ("attn_type", "kv_sharing_target_layer_name")
        refuse("PrefillPrefixLMAttention", {name: options.pop(name, None) for name in names})
        super().__init__(num_heads, head_size, scale, num_kv_heads, **options)

    @property
    def more_specs(self) -> tuple[AttentionSpec, ...]:
        return (replace(self.spec, attn_type=AttentionType.ENCODER_ONLY),)

    def _attend(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """What a decoder makes of all tokens, and in its place what an encoder makes of those of prompts."""
        out = super()._attend(query, key, value, cache, metadata)
        prompts = _prompts(metadata)
        if prompts is None or key is None or value is None:
            return out
        rows, nothing = prompts.rows, query.new_empty(0)
        made = self.bound_backend().forward(
            query[rows], key[rows], value[rows], nothing, prompts.metadata, self.more_specs[0], self.sinks
        )
        return out.index_copy(0, rows, made)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The prompts that a step computes: their rows among its tokens (int64), and how these fall into sequences."""

    rows: Tensor
    metadata: AttentionMetadata


def _prompts(metadata: AttentionMetadata) -> _Prompts | None:
    """None where no prompt of several tokens is computed; computed once a step."""
    if "prompts" not in metadata.derived:
        metadata.derived["prompts"] = _find_prompts(metadata)
    found: _Prompts | None = metadata.derived["prompts"]
    return found


def _find_prompts(metadata: AttentionMetadata) -> _Prompts | None:
    if metadata.max_query_len == 1 and min(metadata.seq_lens_host) > 1 and metadata.prompt_lens is None:
        return None
    if metadata.prompt_lens is None:
        raise EngineError("a prefix language model needs to know how long prompts are, and this step does not say")
    rows: list[int] = []
    lengths: list[int] = []
    start = 0
    geometry = zip(metadata.query_lens_host, metadata.seq_lens_host, metadata.prompt_lens.tolist(), strict=True)
    for count, length, prompt in geometry:
        first = length - count
        if first < prompt and (first > 0 or count < prompt):
            raise EngineError(
                "a prefix language model's prompt was to be computed in pieces", value=count, limit=prompt
            )
        if first == 0 and prompt > 1:
            rows += range(start, start + prompt)
            lengths.append(prompt)
        start += count
    if not rows:
        return None
    device = metadata.query_start.device
    counts = tuple(lengths)
    step = replace(
        metadata,
        query_start=torch.tensor([0, *counts], device=device).cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor(counts, dtype=torch.int32, device=device),
        query_lens_host=counts,
        seq_lens_host=counts,
        max_query_len=max(counts),
        max_seq_len=max(counts),
        num_decodes=0,
        prompt_lens=None,
        derived={},
    )
    return _Prompts(torch.tensor(rows, device=device), step)


class StaticSinkAttention(Attention):
    """Learned keys and values come before every sequence's own, as if it began with so many tokens more.

    Sequences are computed one after the other, by backends that attend over keys which lie in no cache.
    """

    reads_own_keys = True

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        sink_len: int,
        num_kv_heads: int | None = None,
        **options: Any,
    ) -> None:
        """As `Attention`, with the number of learned keys, which `update_sink_kv` brings."""
        refuse(
            "StaticSinkAttention", {"kv_sharing_target_layer_name": options.pop("kv_sharing_target_layer_name", None)}
        )
        super().__init__(num_heads, head_size, scale, num_kv_heads, **options)
        self.sink_len = sink_len
        self.spec = replace(self.spec, sink_len=sink_len)
        self._learned: tuple[Tensor, Tensor] | None = None

    def update_sink_kv(self, sink_key: Tensor, sink_value: Tensor) -> None:
        """Take the learned ``[sink_len, num_kv_heads, head_size]`` keys, rotated, and values (of `head_size_v`).

        Those of a model that is still on the meta device are none.
        """
        if sink_key.is_meta:
            return
        pair = [
            each.reshape(self.sink_len, self.num_kv_heads, -1).to(torch.get_default_dtype())
            for each in (sink_key, sink_value)
        ]
        key, value = (F.pad(each, (0, self.spec.head_size - each.shape[-1])) for each in pair)
        self._learned = key, value

    def _attend(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        backend = self.bound_backend()
        if self._learned is None or key is None or value is None:
            raise EngineError(f"layer {self.layer_name!r} has no learned keys, or was given none of the step's own")
        if not isinstance(backend, SequenceBackend):
            raise EngineError(f"attention backend {backend.name} says that it takes learned keys, and cannot")
        write_kv_cache(cache, key, value + key * 0, metadata.slot_mapping)
        learned = (self._learned[0].to(query) / self.k_scale, self._learned[1].to(query) / self.v_scale)
        parts = []
        for sequence, rows in enumerate(_rows(metadata.query_lens_host)):
            pairs = pages.read(cache, pages.run_of(pages.sequence_slots(metadata, sequence)), query.dtype)
            keys, values = torch.cat((learned[0], pairs[:, 0])), torch.cat((learned[1], pairs[:, -1]))
            parts.append(backend.attend_sequence(query[rows], keys, values, sequence, metadata, self.spec, self.sinks))
        return torch.cat(parts)


def _rows(counts: Sequence[int]) -> list[slice]:
    """Each sequence's rows of the step."""
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
