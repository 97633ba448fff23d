"""Attention layers that few models have, each computed in a way of its own, written out in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.scope import get_current_vllm_config_or_none

from . import pages
from .backend import AttentionSpec
from .explicit import attend
from .layer import Attention
from .mask import score_bias
from .metadata import AttentionMetadata
from .paged import PagedBackend


class ExplicitBackend(PagedBackend):
    """One sequence after another: all keys of the cache, and a bias that says who sees whom."""

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
        output = torch.empty_like(query)
        start = 0
        for sequence, count in enumerate(metadata.query_lens_host):
            rows = slice(start, start + count)
            keys, values = pages.read(kv_cache, pages.sequence_slots(metadata, sequence), query.dtype).unbind(1)
            places = torch.arange(len(keys), device=query.device)[None]
            bias = self.bias(spec, places[:, len(keys) - count :], places, metadata, sequence)
            keys, values, bias = self.joined(keys, values, bias)
            grouped = query[rows].view(1, count, spec.num_kv_heads, -1, spec.head_size).permute(0, 2, 3, 1, 4)
            out = attend(grouped, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], bias, spec, sinks)
            output[rows] = out.permute(0, 3, 1, 2, 4).reshape(query[rows].shape)
            start = rows.stop
        return output

    def bias(
        self, spec: AttentionSpec, queries: Tensor, keys: Tensor, metadata: AttentionMetadata, sequence: int
    ) -> Tensor:
        """Added to the scores of a sequence: ``[1, 1, 1, queries, keys]``."""
        return score_bias(spec, queries, keys, torch.float32)

    def joined(self, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The keys and values to be attended to, and the bias of each."""
        return keys, values, bias


class PrefixLMBackend(ExplicitBackend):
    """Tokens of a prompt see all of the prompt; those of the answer see what was before them."""

    name = "prefix-lm"

    def bias(
        self, spec: AttentionSpec, queries: Tensor, keys: Tensor, metadata: AttentionMetadata, sequence: int
    ) -> Tensor:
        if metadata.prompt_lens is None:
            raise EngineError("whoever made this step did not say how long its prompts are")
        prompt = metadata.prompt_lens[sequence]
        together = (queries < prompt)[:, None, None, :, None] & (keys < prompt)[:, None, None, None, :]
        return super().bias(spec, queries, keys, metadata, sequence).masked_fill(together, 0.0)


class StaticSinkBackend(ExplicitBackend):
    """Before every sequence stand keys and values that were learned, which all queries see (openPangu)."""

    name = "static-sinks"

    def __init__(self) -> None:
        self.sinks: tuple[Tensor, Tensor] | None = None

    def joined(self, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sinks is None:
            return keys, values, bias
        first, second = (each.to(keys.dtype) for each in self.sinks)
        seen = bias.new_zeros(*bias.shape[:-1], len(first))
        return torch.cat((first, keys)), torch.cat((second, values)), torch.cat((seen, bias), -1)


def _refuse_deterministic(kind: str) -> None:
    scope = get_current_vllm_config_or_none()
    if scope is not None and scope.model_config.deterministic:
        raise ConfigError(
            f"{kind} has no deterministic version", code="UNSUPPORTED_LAYER", field="deterministic", value=True,
            fix="deterministic=False",
        )  # fmt: skip


class PrefillPrefixLMAttention(Attention):
    """Attention in which a prompt is read in both directions and its answer in one; a prompt is computed whole."""

    reads_prompt_whole = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As `Attention`."""
        _refuse_deterministic("attention over a whole prompt")
        super().__init__(*arguments, **options | {"attn_backend": PrefixLMBackend()})


class ChunkedLocalAttention(Attention):
    """Attention within runs of `attention_chunk_size` positions (Llama 4)."""

    def __init__(self, num_heads: int, head_size: int, scale: float, attention_chunk_size: int, **options: Any) -> None:
        """As `Attention`."""
        super().__init__(num_heads, head_size, scale, attention_chunk_size=attention_chunk_size, **options)


class StaticSinkAttention(Attention):
    """Attention with `sink_len` learned keys and values before every sequence, which `update_sink_kv` gives."""

    def __init__(
        self, num_heads: int, head_size: int, scale: float, sink_len: int, *, attn_backend: Any = None, **options: Any
    ) -> None:
        """As `Attention`; its backend is its own."""
        _refuse_deterministic("attention with learned keys")
        self._static = StaticSinkBackend()
        self.sink_len = sink_len
        super().__init__(num_heads, head_size, scale, **options | {"attn_backend": self._static})

    def update_sink_kv(self, sink_key: Tensor, sink_value: Tensor) -> None:
        """Keys ``[sink_len, num_kv_heads, head_size]`` and values ``[sink_len, num_kv_heads, head_size_v]``."""
        self._static.sinks = sink_key.detach(), self._wide(sink_value.detach())
