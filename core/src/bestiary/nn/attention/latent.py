"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one narrow vector a token is kept for all heads.

Of a token the cache has ``[latent, rotated key]``, `kv_lora_rank` and `qk_rope_head_dim` numbers; keys and values of
all heads are linear in the latent: ``[k_h, v_h] = kv_b_proj(latent)``. Single tokens attend to the latents themselves,
with the projection moved to the query and to the answer (W_UK and W_UV of the paper, section 2.1.2), which reads the
cache once for all heads; longer pieces of a prompt expand the keys and values of their sequence, which is less work
where there are many queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.context import get_forward_context
from bestiary.nn.scope import get_current_vllm_config_or_none

from .layer import cache_dtype_of
from .metadata import AttentionMetadata
from .pages import sequence_slots, slots_of

_BLOCK_ROWS = 128
"""Query rows of a prompt that are computed at once: bounds the memory of scores."""


@dataclass(frozen=True, kw_only=True)
class LatentCacheSpec:
    """What one layer keeps for each token: `width` numbers, of the same on every tensor-parallel rank."""

    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return self.width * self.dtype.itemsize


class LatentBackend:
    """How this attention is computed everywhere: with torch."""

    name = "latent"
    recordable = False


class MLAAttention(nn.Module):
    """Causal latent attention over the paged cache; `num_heads` is this rank's.

    Attributes:
        layer_name: the full name in the model, set when the model is placed.
        backend: what computes it.
    """

    backend = LatentBackend()

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
        **extra: Any,
    ) -> None:
        """`kv_b_proj` makes ``[num_heads * (qk_nope_head_dim + v_head_dim)]`` of a latent, and stays its owner's child.

        Raises:
            ConfigError: a cache of 8 bits, deterministic mode, or a keyword that asks for something else.
        """
        super().__init__()
        asked = [name for name, value in extra.items() if value is not None and value is not False]
        if asked:
            raise ConfigError(
                f"unsupported layer: latent attention with {', '.join(asked)}", code="UNSUPPORTED_LAYER",
                field=asked[0], value=extra[asked[0]],
            )  # fmt: skip
        scope = get_current_vllm_config_or_none()
        if scope is not None and scope.model_config.deterministic:
            raise ConfigError(
                "latent attention has no deterministic version", code="UNSUPPORTED_LAYER", field="deterministic",
                value=True, fix="deterministic=False",
            )  # fmt: skip
        if cache_config is None and scope is not None:
            cache_config = scope.cache_config
        self.cache_dtype = cache_dtype_of("auto" if cache_config is None else cache_config.cache_dtype)
        if self.cache_dtype.itemsize == 1:
            raise ConfigError(
                "latents are kept in 16 bits or more", field="kv_cache_dtype", value=str(self.cache_dtype),
                limit="auto, float32, float16 or bfloat16",
            )  # fmt: skip
        self.layer_name, self.prefix = "", prefix
        self.num_heads, self.scale = num_heads, scale
        self.nope, self.rope, self.v_head_dim, self.latent = (
            qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank,
        )  # fmt: skip
        self._kv_b_proj = (kv_b_proj,)  # in a tuple, so that it is not registered as a child
        self._absorbed: tuple[Tensor, Tensor] | None = None

    def get_kv_cache_spec(self) -> LatentCacheSpec:
        return LatentCacheSpec(width=self.latent + self.rope, dtype=self.cache_dtype)

    def cache_shape(self, spec: LatentCacheSpec, num_blocks: int, block_size: int) -> Sequence[int]:
        return num_blocks, block_size, spec.width

    def forward(self, q: Tensor, kv_c_normed: Tensor, k_pe: Tensor, output_shape: Any = None) -> Tensor:
        """Write this step's latents, then attend.

        Args:
            q: ``[tokens, num_heads, qk_nope_head_dim + qk_rope_head_dim]``, its second part rotated.
            kv_c_normed: ``[tokens, kv_lora_rank]``. k_pe: rotated, ``[tokens, 1, qk_rope_head_dim]``.

        Returns:
            ``[tokens, num_heads * v_head_dim]``.
        """
        context = get_forward_context()
        metadata = context.attention
        cache = self._cache(context.kv_caches).flatten(0, 1)
        fresh = torch.cat((kv_c_normed, k_pe.flatten(1)), -1)
        cache[metadata.slot_mapping] = fresh.to(cache.dtype)
        q = q.view(len(q), self.num_heads, -1)
        decodes = metadata.num_decodes
        parts = [self._decode(q[:decodes], cache, metadata)] if decodes else []
        start = decodes
        for sequence in range(decodes, len(metadata.query_lens_host)):
            rows = slice(start, start + metadata.query_lens_host[sequence])
            parts.append(self._prompt(q[rows], cache, metadata, sequence))
            start = rows.stop
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)

    def _cache(self, kv_caches: Any) -> Tensor:
        if self.layer_name not in kv_caches:
            raise EngineError(f"no KV cache was made for layer {self.layer_name!r}", field="layer_name")
        return cast(Tensor, kv_caches[self.layer_name])

    def _decode(self, q: Tensor, cache: Tensor, metadata: AttentionMetadata) -> Tensor:
        """One query a sequence, all sequences at once: ``[count, num_heads, v_head_dim]``."""
        key, value = self._projections(q.dtype)
        slots, hidden = _decode_slots(metadata, len(q))
        known = cache[slots].to(q.dtype)  # [count, longest, width]
        asked = torch.cat((torch.einsum("bhn,hnl->bhl", q[..., : self.nope], key), q[..., self.nope :]), -1)
        scores = torch.einsum("bhw,bkw->bhk", asked, known).float() * self.scale
        weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).to(q.dtype)
        found = torch.einsum("bhk,bkl->bhl", weights, known[..., : self.latent])
        return torch.einsum("bhl,hvl->bhv", found, value)

    def _prompt(self, q: Tensor, cache: Tensor, metadata: AttentionMetadata, sequence: int) -> Tensor:
        """A piece of one sequence: ``[count, num_heads, v_head_dim]``."""
        known = cache[sequence_slots(metadata, sequence)].to(q.dtype)
        latents, rotated = torch.split(known, [self.latent, self.rope], -1)
        expanded = self._expand(latents).view(len(known), self.num_heads, -1)
        keys, values = torch.split(expanded, [self.nope, self.v_head_dim], -1)
        keys = torch.cat((keys, rotated[:, None].expand(-1, self.num_heads, -1)), -1)
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        count, length = len(q), len(known)
        parts = []
        for first in range(0, count, _BLOCK_ROWS):
            rows = q[first : first + _BLOCK_ROWS].transpose(0, 1)
            end = length - count + first + rows.shape[1]
            positions = torch.arange(end - rows.shape[1], end, device=q.device)
            later = torch.arange(end, device=q.device) > positions[:, None]
            scores = torch.matmul(rows, keys[:, :end].transpose(1, 2)).float() * self.scale
            weights = scores.masked_fill(later, -torch.inf).softmax(-1).to(q.dtype)
            parts.append(torch.matmul(weights, values[:, :end]).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _expand(self, latents: Tensor) -> Tensor:
        """Keys and values of all heads."""
        made = self._kv_b_proj[0](latents)
        return cast(Tensor, made[0] if isinstance(made, tuple) else made)

    def _projections(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W_UK ``[heads, nope, latent]`` and W_UV ``[heads, v, latent]``, whatever form `kv_b_proj` keeps them in."""
        if self._absorbed is None or self._absorbed[0].dtype is not dtype:
            device = next(self._kv_b_proj[0].parameters()).device
            columns = self._expand(torch.eye(self.latent, dtype=dtype, device=device))
            by_head = columns.view(self.latent, self.num_heads, -1).permute(1, 2, 0).contiguous()
            self._absorbed = by_head[:, : self.nope], by_head[:, self.nope :]
        return self._absorbed

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, latent={self.latent}, rope={self.rope}, values={self.v_head_dim}"


def _decode_slots(metadata: AttentionMetadata, count: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of the first `count` sequences lie, ``[count, longest]`` padded with each one's last, and which
    of these are padding; computed once a step."""
    kept: tuple[Tensor, Tensor] | None = metadata.derived.get("latent.decodes")
    if kept is None:
        last = metadata.seq_lens[:count, None].long() - 1
        positions = torch.arange(max(metadata.seq_lens_host[:count]), device=last.device)[None]
        slots = slots_of(metadata, metadata.block_tables[:count].long(), torch.minimum(positions, last))
        kept = metadata.derived["latent.decodes"] = slots, positions > last
    return kept
