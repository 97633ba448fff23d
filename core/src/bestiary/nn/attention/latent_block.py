"""Latent attention with the projections around it, as model files of DeepSeek's kind put it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError

from .latent import MLAAttention


@dataclass
class MLAModules:
    """The layers around latent attention, as a model file has made them; those that it does not have are None."""

    kv_a_layernorm: nn.Module
    kv_b_proj: nn.Module
    rotary_emb: nn.Module | None
    o_proj: nn.Module
    fused_qkv_a_proj: nn.Module | None = None
    kv_a_proj_with_mqa: nn.Module | None = None
    q_a_layernorm: nn.Module | None = None
    q_b_proj: nn.Module | None = None
    q_proj: nn.Module | None = None
    indexer: nn.Module | None = None
    is_sparse: bool = False
    topk_indices_buffer: Tensor | None = None
    indexer_rotary_emb: nn.Module | None = None
    g_proj: nn.Module | None = None
    index_group_builder: Any = None


class MultiHeadLatentAttentionWrapper(nn.Module):
    """From hidden states to hidden states: the projections before latent attention, it, and the one after it.

    The layers stay children of whoever made them.
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
        **extra: Any,
    ) -> None:
        """Keywords beyond these choose among vLLM's kernels, and change no number; sparse attention is a
        `ConfigError`."""
        super().__init__()
        if mla_modules.is_sparse or mla_modules.indexer is not None:
            raise ConfigError(
                "unsupported layer: sparse latent attention (DeepSeek V3.2)", code="UNSUPPORTED_LAYER",
                field="index_topk",
            )  # fmt: skip
        self._modules_of = (mla_modules,)
        self.num_heads, self.q_lora_rank, self.kv_lora_rank = num_heads, q_lora_rank, kv_lora_rank
        self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = qk_nope_head_dim, qk_rope_head_dim, v_head_dim
        self.mla_attn = MLAAttention(
            num_heads=num_heads,
            scale=scale,
            qk_nope_head_dim=qk_nope_head_dim,
            qk_rope_head_dim=qk_rope_head_dim,
            v_head_dim=v_head_dim,
            q_lora_rank=q_lora_rank,
            kv_lora_rank=kv_lora_rank,
            kv_b_proj=mla_modules.kv_b_proj,
            cache_config=cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden_states: Tensor, llama_4_scaling: Tensor | None = None) -> Tensor:
        """``[tokens, hidden]`` → the same. `llama_4_scaling` multiplies the queries, broadcast over them."""
        made = self._modules_of[0]
        query, latent = self._query_and_latent(made, hidden_states)
        query = query.view(len(query), self.num_heads, -1)
        kv_c, k_pe = torch.split(latent, [self.kv_lora_rank, self.qk_rope_head_dim], -1)
        kv_c, k_pe = made.kv_a_layernorm(kv_c.contiguous()), k_pe.unsqueeze(1)
        if made.rotary_emb is not None:
            plain, turned = torch.split(query, [self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
            turned, k_pe = made.rotary_emb(positions, turned.flatten(1), k_pe.flatten(1))
            query = torch.cat((plain, turned.view(len(query), self.num_heads, -1)), -1)
            k_pe = k_pe.unsqueeze(1)
        if llama_4_scaling is not None:
            query = query * llama_4_scaling
        output = self.mla_attn(query, kv_c, k_pe)
        if made.g_proj is not None:
            output = output * torch.sigmoid(_first(made.g_proj(hidden_states)))
        return _first(made.o_proj(output))

    def _query_and_latent(self, made: MLAModules, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """The query of all heads, and what of a token is kept: its latent and the key to be rotated."""
        if made.q_b_proj is None or made.q_a_layernorm is None:
            if made.q_proj is None or made.kv_a_proj_with_mqa is None:
                raise EngineError("latent attention has neither q_proj nor q_b_proj")
            return _first(made.q_proj(hidden_states)), _first(made.kv_a_proj_with_mqa(hidden_states))
        if made.fused_qkv_a_proj is None:
            raise EngineError("latent attention of low-rank queries has no fused_qkv_a_proj")
        both = _first(made.fused_qkv_a_proj(hidden_states))
        kept = self.kv_lora_rank + self.qk_rope_head_dim
        low, latent = torch.split(both, [both.shape[-1] - kept, kept], -1)
        return _first(made.q_b_proj(made.q_a_layernorm(low.contiguous()))), latent


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
