"""The first Qwen: 1.8B, 7B, 14B and 72B (arXiv 2309.16609).

A decoder of pre-normalised blocks: RMSNorm, multi-head attention with rotary positions, RMSNorm, SwiGLU. Beyond the
length of its training two features carry it: rotary frequencies chosen by the length of the prompt (dynamic NTK), and
queries that grow with the logarithm of their position (log-n attention). Shapes are ``[tokens, …]``: sequences lie one
after another in one flat batch, and attention alone knows where each begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bestiary.api import IntermediateTensors, SupportsLoRA, SupportsPP, VllmConfig
from bestiary.nn import (
    Attention,
    LogitsProcessor,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    RMSNorm,
    RowParallelLinear,
    SiluAndMul,
    VocabParallelEmbedding,
    get_pp_group,
    get_rope,
    make_layers,
)

if TYPE_CHECKING:
    from .config import QWenConfig


def rope_parameters(config: QWenConfig) -> Mapping[str, Any]:
    """Dynamic NTK wins over a scaling in `rope_parameters`; without either, plain rotation."""
    scaling = config.rope_parameters or {}
    if config.use_dynamic_ntk:
        scaling = {"rope_type": "dynamic_by_prompt", "original_max_position_embeddings": config.seq_length}
    return {"rope_theta": config.rotary_emb_base, **scaling}


class QWenMLP(nn.Module):
    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        width, bias = config.intermediate_size // 2, not config.no_bias
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, [width] * 2, bias=bias)
        self.c_proj = RowParallelLinear(width, config.hidden_size, bias=bias)
        self.act_fn = SiluAndMul()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate_up, _ = self.gate_up_proj(hidden_states)
        output, _ = self.c_proj(self.act_fn(gate_up))
        return output


class QWenAttention(nn.Module):
    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        head_dim, heads = config.head_dim, config.num_attention_heads
        self.c_attn = QKVParallelLinear(config.hidden_size, head_dim, heads, bias=True)
        self.c_proj = RowParallelLinear(heads * head_dim, config.hidden_size, bias=not config.no_bias)
        self.rotary_emb = get_rope(
            head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters=rope_parameters(config),
            partial_rotary_factor=config.rotary_pct,
            dtype=torch.float32,
        )
        self.attn = Attention(
            self.c_attn.num_heads, head_dim, scale=head_dim**-0.5 if config.scale_attn_weights else 1.0
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, query_scale: torch.Tensor | None
    ) -> torch.Tensor:
        qkv, _ = self.c_attn(hidden_states)
        q, k, v = qkv.split(self.c_attn.split_sizes, dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        if query_scale is not None:
            q = q * query_scale
        output, _ = self.c_proj(self.attn(q, k, v))
        return output


class QWenBlock(nn.Module):
    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        query_scale: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states, residual = self.ln_1(hidden_states, residual)
        hidden_states = self.attn(positions, hidden_states, query_scale)
        hidden_states, residual = self.ln_2(hidden_states, residual)
        return self.mlp(hidden_states), residual


class QWenModel(nn.Module):
    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.logn_length = config.seq_length if config.use_logn_attn else None
        self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.start_layer, self.end_layer, self.h = make_layers(
            config.num_hidden_layers, lambda prefix: QWenBlock(config)
        )
        self.ln_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.wte(input_ids)

    def query_scale(self, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Log-n attention: ``[tokens, 1]``, log(p + 1) / log(seq_length) at 0-based position p, and 1 where less."""
        if self.logn_length is None:
            return None
        scale = (positions + 1).float().log() / math.log(self.logn_length)
        return scale.clamp(min=1).to(dtype).unsqueeze(-1)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is None:
            hidden_states = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
            residual = torch.zeros_like(hidden_states)
        else:
            hidden_states, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        query_scale = self.query_scale(positions, hidden_states.dtype)
        for layer in islice(self.h, self.start_layer, self.end_layer):
            hidden_states, residual = layer(positions, hidden_states, residual, query_scale)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states, "residual": residual})
        hidden_states, _ = self.ln_f(hidden_states, residual)
        return hidden_states


class QWenLMHeadModel(nn.Module, SupportsLoRA, SupportsPP):
    packed_modules_mapping = {"gate_up_proj": ["w2", "w1"]}
    embedding_modules = {"wte": "input_embeddings", "lm_head": "output_embeddings"}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.transformer = QWenModel(config)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            self.lm_head.tie_weights(self.transformer.wte)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        zeros = torch.zeros(batch_size, self.config.hidden_size, dtype=dtype, device=device)
        return IntermediateTensors({"hidden_states": zeros, "residual": zeros.clone()})
