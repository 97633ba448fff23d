"""The whole block of multi-head latent attention: from hidden states to hidden states, of modules that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError

from .base import refuse
from .latent import MLAAttention


@dataclass
class MLAModules:
    """What the block is made of; the names are the checkpoint's.

    With a low-rank query (`q_lora_rank`): `fused_qkv_a_proj`, `q_a_layernorm`, `q_b_proj`; without: `q_proj`,
    `kv_a_proj_with_mqa`. `rotary_emb` is None where nothing is rotated, `g_proj` where the result has no gate. Sparse
    attention's `indexer` is refused.
    """

    kv_a_layernorm: nn.Module
    kv_b_proj: nn.Module
    rotary_emb: nn.Module | None
    o_proj: nn.Module
    fused_qkv_a_proj: nn.Module | None
    kv_a_proj_with_mqa: nn.Module | None
    q_a_layernorm: nn.Module | None
    q_b_proj: nn.Module | None
    q_proj: nn.Module | None
    indexer: nn.Module | None = None
    is_sparse: bool = False
    topk_indices_buffer: Tensor | None = None
    indexer_rotary_emb: nn.Module | None = None
    g_proj: nn.Module | None = None
    index_group_builder: Any = None


_NEEDED = {True: ("fused_qkv_a_proj", "q_a_layernorm", "q_b_proj"), False: ("kv_a_proj_with_mqa", "q_proj")}


class MultiHeadLatentAttentionWrapper(nn.Module):
    """Projections, norms, rotation, `MLAAttention`, output projection. The modules stay children of whoever made them.

    Attributes:
        parts: those modules.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        scale: float,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        mla_modules: MLAModules,
        cache_config: Any = None,
        quant_config: Any = None,
        prefix: str = "",
        skip_topk: bool = False,
        fuse_qkv_rmsnorm: bool = False,
        allow_short_prefill_indexer_scoring_skip: bool = False,
        **extra: Any,
    ) -> None:
        """`skip_topk`, `fuse_qkv_rmsnorm` and `allow_short_prefill_indexer_scoring_skip` are accepted and ignored: they
        ask for faster ways to the same numbers. Anything else that asks for something is a `ConfigError` naming it."""
        super().__init__()
        refuse(type(self).__name__, {"indexer": mla_modules.indexer, "is_sparse": mla_modules.is_sparse, **extra})
        for name in _NEEDED[q_lora_rank is not None]:
            if getattr(mla_modules, name) is None:
                raise ConfigError(
                    "latent attention lacks a module", field=f"mla_modules.{name}", limit=f"q_lora_rank={q_lora_rank}"
                )
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = qk_nope_head_dim, qk_rope_head_dim, v_head_dim
        self.qk_head_dim = qk_nope_head_dim + qk_rope_head_dim
        self.q_lora_rank, self.kv_lora_rank = q_lora_rank, kv_lora_rank
        self.prefix = prefix
        self.parts = mla_modules
        self.mla_attn = MLAAttention(
            num_heads=num_heads, scale=scale, qk_nope_head_dim=qk_nope_head_dim, qk_rope_head_dim=qk_rope_head_dim,
            v_head_dim=v_head_dim, q_lora_rank=q_lora_rank, kv_lora_rank=kv_lora_rank,
            kv_b_proj=mla_modules.kv_b_proj, cache_config=cache_config, quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )  # fmt: skip

    def forward(self, positions: Tensor, hidden_states: Tensor, llama_4_scaling: Tensor | None = None) -> Tensor:
        """``[tokens, hidden_size]`` to the same. `llama_4_scaling`, ``[tokens, 1, 1]``, multiplies rotated queries."""
        query, latent = self._projected(hidden_states)
        compressed, key = torch.split(latent, [self.kv_lora_rank, self.qk_rope_head_dim], -1)
        query, key = query.view(-1, self.num_heads, self.qk_head_dim), key[:, None]
        if self.parts.rotary_emb is not None:
            rotated, key = self.parts.rotary_emb(positions, query[..., self.qk_nope_head_dim :], key)
            query = torch.cat((query[..., : self.qk_nope_head_dim], rotated), -1)
        if llama_4_scaling is not None:
            query = query * llama_4_scaling
        out = self.mla_attn(query, self.parts.kv_a_layernorm(compressed), key)
        if self.parts.g_proj is not None:
            out = out * _output(self.parts.g_proj, hidden_states).sigmoid()
        return _output(self.parts.o_proj, out)

    def _projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of all heads, and latents with the shared key."""
        if self.q_lora_rank is None:
            return _output(self.parts.q_proj, hidden_states), _output(self.parts.kv_a_proj_with_mqa, hidden_states)
        both = _output(self.parts.fused_qkv_a_proj, hidden_states)
        low, latent = torch.split(both, [self.q_lora_rank, self.kv_lora_rank + self.qk_rope_head_dim], -1)
        return _output(self.parts.q_b_proj, _output(self.parts.q_a_layernorm, low)), latent


def _output(layer: Any, x: Tensor) -> Tensor:
    """What a linear layer makes of `x`, which may come with a bias that was left out."""
    made: Any = layer(x)
    out: Tensor = made[0] if isinstance(made, tuple) else made
    return out
