"""BLOOM (arXiv 2211.05100) and BLOOMZ (arXiv 2211.01786).

A decoder of pre-normalised blocks with a LayerNorm after the embedding too: LayerNorm, attention whose scores fall with
distance (ALiBi) in place of positions, LayerNorm, GELU MLP four times as wide. Every linear layer has a bias, and the
head is the embedding. Shapes are ``[tokens, …]``: sequences lie one after another in one flat batch, and attention
alone knows where each begins.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from bestiary.api import IntermediateTensors, SupportsLoRA, SupportsPP, VllmConfig
from bestiary.nn import (
    Attention,
    ColumnParallelLinear,
    LayerNorm,
    LogitsProcessor,
    ParallelLMHead,
    QKVParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    WeightsMapper,
    get_act_fn,
    get_alibi_slopes,
    get_pp_group,
    make_layers,
)

if TYPE_CHECKING:
    from transformers import BloomConfig


class BloomAttention(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        head_dim = config.hidden_size // config.n_head
        self.query_key_value = QKVParallelLinear(config.hidden_size, head_dim, config.n_head, interleaved=True)
        self.dense = RowParallelLinear(config.hidden_size, config.hidden_size)
        self.attn = Attention(
            self.query_key_value.num_heads,
            head_dim,
            scale=head_dim**-0.5,
            alibi_slopes=get_alibi_slopes(config.n_head),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.query_key_value(hidden_states)
        q, k, v = qkv.split(self.query_key_value.split_sizes, dim=-1)
        output, _ = self.dense(self.attn(q, k, v))
        return output


class BloomMLP(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnParallelLinear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = RowParallelLinear(4 * config.hidden_size, config.hidden_size)
        self.act_fn = get_act_fn("gelu_tanh")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up, _ = self.dense_h_to_4h(hidden_states)
        output, _ = self.dense_4h_to_h(self.act_fn(up))
        return output


class BloomBlock(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = BloomAttention(config)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = BloomMLP(config)
        self.residual_is_normed = config.apply_residual_connection_post_layernorm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        residual = normed if self.residual_is_normed else hidden_states
        hidden_states = residual + self.self_attention(normed)
        normed = self.post_attention_layernorm(hidden_states)
        residual = normed if self.residual_is_normed else hidden_states
        return residual + self.mlp(normed)


class BloomModel(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.word_embeddings = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.start_layer, self.end_layer, self.h = make_layers(config.n_layer, lambda prefix: BloomBlock(config))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.word_embeddings(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is None:
            embedded = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
            hidden_states = self.word_embeddings_layernorm(embedded)
        else:
            hidden_states = intermediate_tensors["hidden_states"]
        for block in islice(self.h, self.start_layer, self.end_layer):
            hidden_states = block(hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.ln_f(hidden_states)


class BloomForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    packed_modules_mapping: dict[str, list[str]] = {}  # the checkpoint's own query_key_value is fused
    embedding_modules = {"word_embeddings": "input_embeddings", "lm_head": "output_embeddings"}
    hf_to_vllm_mapper = WeightsMapper(  # checkpoints of the bare model, as BLOOM's own are, lack the prefix
        orig_to_new_prefix={name: f"transformer.{name}" for name in ("word_embeddings", "h.", "ln_f.")}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.transformer = BloomModel(config)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            self.lm_head.tie_weights(self.transformer.word_embeddings)
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
        return self.transformer(input_ids, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        zeros = torch.zeros(batch_size, self.config.hidden_size, dtype=dtype, device=device)
        return IntermediateTensors({"hidden_states": zeros})
