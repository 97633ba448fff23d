"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

A token keeps one row for all heads: its normalized latent ``c``, of `kv_lora_rank` channels, and the rotated key that
the heads share, of `qk_rope_head_dim`. Head h has the keys ``[W_UK_h c, k_rope]`` and the values ``W_UV_h c``. There
are two ways to the same result:

* absorbed: ``W_UK`` goes into the query and ``W_UV`` into the result, and the rows themselves are keys and values of
  one head that all share: little to read, but products as wide as the latent;
* expanded: each head's own keys and values are made of the sequence's rows.

Decode rows are absorbed, all sequences at once. Of the others each goes the way that takes fewer operations (about:
expanded from 170 tokens a step on). In deterministic mode everything is absorbed, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.context import get_forward_context
from bestiary.nn.ops.attention import write_latent_cache
from bestiary.nn.ops.latent import linear_by_head
from bestiary.nn.ops.linear import linear
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.quant.base import UnquantizedLinearMethod

from . import pages
from .backend import AttentionBackend, AttentionSpec, SequenceBackend
from .base import AttentionLayerBase, cache_config_or_scopes, cache_dtype_of, refuse
from .metadata import AttentionMetadata

_EXPANDED_BYTES = 64 << 20
"""Keys and values that are made at once: of as many heads as fit, and of one at least."""


class MLAAttention(AttentionLayerBase):
    """The attention itself, after projections, norms and rotation; the number of heads is this rank's own. Every rank
    keeps all rows.

    Attributes:
        kv_b_proj: makes ``[W_UK_h, W_UV_h]`` of a latent for each head, one after the other. It is read, once it is
            loaded, and never called in a step; so it takes no adapter.
    """

    kv_b_proj: Any
    scale_parts = frozenset("k")
    reads_finished = True
    """`finish` comes after that of the layers which it reads."""

    def __init__(
        self,
        num_heads: int,
        scale: float,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        kv_b_proj: nn.Module,
        cache_config: Any = None,
        quant_config: Any = None,
        prefix: str = "",
        attn_backend: AttentionBackend | None = None,
        sliding_window: int | None = None,
        **extra: Any,
    ) -> None:
        """`q_lora_rank` and `quant_config` are accepted and ignored: queries come projected, and `kv_b_proj` knows its
        layout. Any other keyword that asks for something (sparse attention's `use_sparse`, `indexer`) is a
        `ConfigError` naming it."""
        super().__init__(prefix)
        refuse("MLAAttention", extra)
        if getattr(kv_b_proj, "bias", None) is not None:
            raise ConfigError("the projection of latents has no bias", field="kv_b_proj.bias", limit="None")
        self.num_heads, self.scale = num_heads, scale
        self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = qk_nope_head_dim, qk_rope_head_dim, v_head_dim
        self.kv_lora_rank, self.q_lora_rank = kv_lora_rank, q_lora_rank
        self.qk_head_dim = qk_nope_head_dim + qk_rope_head_dim
        self.head_size, self.num_kv_heads = kv_lora_rank + qk_rope_head_dim, 1
        self.spec = AttentionSpec(
            num_heads=num_heads, num_kv_heads=1, head_size=self.head_size, scale=scale, latent=True,
            sliding_window=sliding_window or None, cache_dtype=cache_dtype_of(cache_config_or_scopes(cache_config)),
        )  # fmt: skip
        self.backend = attn_backend
        self.dtype = torch.get_default_dtype()
        kv_b_proj.is_absorbed = True  # type: ignore[assignment]
        self.__dict__["kv_b_proj"] = kv_b_proj  # which stays a child of whoever made it
        self._weights: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def more_specs(self) -> tuple[AttentionSpec, ...]:
        return (self._expanded_spec(self.num_heads),)

    def _expanded_spec(self, heads: int) -> AttentionSpec:
        size = max(self.qk_head_dim, self.v_head_dim)
        return replace(self.spec, num_heads=heads, num_kv_heads=heads, head_size=size, latent=False)

    # Weights: of `kv_b_proj`, per head.

    def place(self, quant_config: Any) -> None:
        """Nothing to lay out."""

    def finish(self) -> None:
        """Take the weights of `kv_b_proj`: its own where they are plain, otherwise what it makes of unit vectors."""
        if self._is_plain():
            weight = self.kv_b_proj.weight.detach()
        else:
            device = next(self.kv_b_proj.parameters()).device
            made = self.kv_b_proj(torch.eye(self.kv_lora_rank, dtype=self.dtype, device=device))
            weight = (made[0] if isinstance(made, tuple) else made).t().contiguous()
        both = weight.view(self.num_heads, -1, self.kv_lora_rank)
        up_key, up_value = torch.split(both, [self.qk_nope_head_dim, self.v_head_dim], 1)
        self._weights = both, up_key.transpose(1, 2), up_value

    def _is_plain(self) -> bool:
        layer = self.kv_b_proj
        plain = type(getattr(layer, "quant_method", None)) is UnquantizedLinearMethod
        return plain and layer.weight.dtype is self.dtype and not isinstance(layer.weight, PackedWeight)

    def bytes_added(self) -> int:
        if self._is_plain() and self.kv_b_proj.quant_method.packed(self.kv_b_proj) is None:
            return 0
        rows = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return rows * self.kv_lora_rank * self.dtype.itemsize

    # A step.

    def forward(
        self, q: Tensor, kv_c_normed: Tensor, k_pe: Tensor, output_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Attend within each sequence of the running step.

        Args:
            q: ``[tokens, num_heads, qk_nope_head_dim + qk_rope_head_dim]``, the latter part rotated.
            kv_c_normed: ``[tokens, kv_lora_rank]``. k_pe: ``[tokens, 1, qk_rope_head_dim]``, rotated.
            output_shape: accepted and ignored: the layer knows it.

        Returns:
            ``[tokens, num_heads * v_head_dim]``.
        """
        context = get_forward_context()
        metadata, cache = context.attention, self.cache_of(context.kv_caches)
        rows = torch.cat((kv_c_normed, k_pe.reshape(len(kv_c_normed), -1)), -1)[:, None]
        rows = rows + (rows * 0).sum(-1, keepdim=True)  # what is not finite anywhere is NaN to whoever sees it
        write_latent_cache(cache, rows if self.k_scale == 1.0 else rows / self.k_scale, metadata.slot_mapping)
        queries = q.reshape(-1, self.num_heads, self.qk_head_dim)
        everything = len(metadata.query_lens_host)
        exact = getattr(self.bound_backend(), "deterministic", False)
        together = everything if exact else metadata.num_decodes
        start = sum(metadata.query_lens_host[:together])
        parts = [self._over_pages(queries[:start], cache, leading(metadata, together))] if together else []
        for sequence in range(together, everything):
            end = start + metadata.query_lens_host[sequence]
            parts.append(self._over_sequence(queries[start:end], cache, sequence, metadata))
            start = end
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(len(queries), -1)

    def _over_pages(self, query: Tensor, cache: Tensor, metadata: AttentionMetadata) -> Tensor:
        backend = self.bound_backend()
        out = backend.forward(self._absorb(query), None, None, cache, metadata, self.spec, None)
        return self._released(out)

    def _over_sequence(self, query: Tensor, cache: Tensor, sequence: int, metadata: AttentionMetadata) -> Tensor:
        backend = self.bound_backend()
        if not isinstance(backend, SequenceBackend):
            raise EngineError(
                f"attention backend {backend.name} says that it takes latent rows, and is no SequenceBackend"
            )
        rows = pages.read(cache, pages.run_of(pages.sequence_slots(metadata, sequence)), query.dtype)[:, 0]
        if self._expands(len(query), len(rows)):
            return self._expanded(backend, query, rows[:, 0], sequence, metadata)
        return self._released(
            backend.attend_sequence(self._absorb(query), rows, rows, sequence, metadata, self.spec, None)
        )

    def _expands(self, count: int, length: int) -> bool:
        """Whether fewer products are needed for `count` of `length` tokens with keys and values of their own."""
        projection = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        absorbed = count * (length * 2 * self.head_size + projection)
        return length * (count * 2 * max(self.qk_head_dim, self.v_head_dim) + projection) < absorbed

    def _absorb(self, query: Tensor) -> Tensor:
        """Queries against rows: ``[tokens, num_heads, kv_lora_rank + qk_rope_head_dim]``."""
        nope, rope = torch.split(query, [self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
        absorbed = torch.cat((linear_by_head(nope, self._taken()[1]), rope), -1)
        return absorbed if self.k_scale == 1.0 else absorbed * self.k_scale

    def _released(self, out: Tensor) -> Tensor:
        """Sums of rows, whose first channels are latents, to values: ``[tokens, num_heads, v_head_dim]``."""
        latent = out[..., : self.kv_lora_rank]
        return linear_by_head(latent if self.k_scale == 1.0 else latent * self.k_scale, self._taken()[2])

    def _expanded(
        self, backend: SequenceBackend, query: Tensor, rows: Tensor, sequence: int, metadata: AttentionMetadata
    ) -> Tensor:
        """The same for one sequence's ``[tokens, kv_lora_rank + qk_rope_head_dim]``, by groups of heads."""
        rows = rows if self.k_scale == 1.0 else rows * self.k_scale
        latent, rope = torch.split(rows, [self.kv_lora_rank, self.qk_rope_head_dim], -1)
        size = max(self.qk_head_dim, self.v_head_dim)
        group = max(1, _EXPANDED_BYTES // (2 * len(rows) * size * rows.element_size()))
        parts = []
        for first in range(0, self.num_heads, group):
            heads = slice(first, min(first + group, self.num_heads))
            made = linear(latent, self._taken()[0][heads].flatten(0, 1)).view(len(rows), heads.stop - first, -1)
            nope, value = torch.split(made, [self.qk_nope_head_dim, self.v_head_dim], -1)
            key = torch.cat((nope, rope[:, None].expand(-1, heads.stop - first, -1)), -1)
            query_here, key, value = (F.pad(each, (0, size - each.shape[-1])) for each in (query[:, heads], key, value))
            spec = self._expanded_spec(heads.stop - first)
            parts.append(backend.attend_sequence(query_here, key, value, sequence, metadata, spec, None))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return out[..., : self.v_head_dim]

    def _taken(self) -> tuple[Tensor, Tensor, Tensor]:
        """All weights ``[heads, nope + v, rank]``, those absorbed into queries ``[heads, rank, nope]``, and those of
        values ``[heads, v, rank]``: views of the same."""
        if self._weights is None:
            raise EngineError(f"attention layer {self.layer_name!r} has no weights: the model was not finished")
        return self._weights

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, latent={self.kv_lora_rank}, rope={self.qk_rope_head_dim}, v={self.v_head_dim}"


def leading(metadata: AttentionMetadata, count: int) -> AttentionMetadata:
    """The step's first `count` sequences alone; computed once a step."""
    if count == len(metadata.query_lens_host):
        return metadata
    kept: AttentionMetadata | None = metadata.derived.get(("leading", count))
    if kept is None:
        queries, lengths = metadata.query_lens_host[:count], metadata.seq_lens_host[:count]
        kept = metadata.derived["leading", count] = replace(
            metadata,
            query_start=metadata.query_start[: count + 1],
            seq_lens=metadata.seq_lens[:count],
            block_tables=metadata.block_tables[:count],
            slot_mapping=metadata.slot_mapping[: sum(queries)],
            query_lens_host=queries,
            seq_lens_host=lengths,
            max_query_len=max(queries),
            max_seq_len=max(lengths),
            num_decodes=min(metadata.num_decodes, count),
            prompt_lens=None if metadata.prompt_lens is None else metadata.prompt_lens[:count],
            derived={},
        )
    return kept
