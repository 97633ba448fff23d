"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and MLP side by side, each behind its own norm.

LayerNorm and every projection have biases, rotary positions turn a part of each head, and the fused projection goes
head by head: each head's query, key and value. A few checkpoints (RedPajama-INCITE) are sequential:
`use_parallel_residual` is false. Shapes are ``[tokens, …]``: sequences lie one after another in one flat batch, and
attention alone knows where each begins.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
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
    get_pp_group,
    get_rope,
    make_layers,
)
from torch import nn


class GPTNeoXAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        heads, bias = config.num_attention_heads, config.attention_bias
        head_dim = config.hidden_size // heads
        self.query_key_value = QKVParallelLinear(config.hidden_size, head_dim, heads, bias=bias, interleaved=True)
        self.dense = RowParallelLinear(config.hidden_size, config.hidden_size, bias=bias)
        # rope_parameters says how much of a head is rotated: rotary_pct in config.json
        self.rotary_emb = get_rope(
            head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(self.query_key_value.num_heads, head_dim, scale=head_dim**-0.5)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.query_key_value(hidden_states)
        q, k, v = qkv.split(self.query_key_value.split_sizes, dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.dense(self.attn(q, k, v))
        return output


class GPTNeoXMLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnParallelLinear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = RowParallelLinear(config.intermediate_size, config.hidden_size)
        self.act = get_act_fn(config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states, _ = self.dense_h_to_4h(hidden_states)
        output, _ = self.dense_4h_to_h(self.act(hidden_states))
        return output


class GPTNeoXLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = GPTNeoXAttention(config)
        self.mlp = GPTNeoXMLP(config)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = hidden_states + self.attention(positions, self.input_layernorm(hidden_states))
        mlp_input = hidden_states if self.use_parallel_residual else attended
        return attended + self.mlp(self.post_attention_layernorm(mlp_input))


class GPTNeoXModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_in = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers, lambda prefix: GPTNeoXLayer(config)
        )
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is None:
            hidden_states = self.embed_in(input_ids) if inputs_embeds is None else inputs_embeds
        else:
            hidden_states = intermediate_tensors["hidden_states"]
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states = layer(positions, hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.final_layer_norm(hidden_states)


class GPTNeoXForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    packed_modules_mapping: dict[str, list[str]] = {}  # the checkpoint has the fused projection
    embedding_modules = {"embed_in": "input_embeddings", "embed_out": "output_embeddings"}
    # masks and frequencies that older checkpoints carry along
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_suffix={".attention.bias": None, ".attention.masked_bias": None, ".rotary_emb.inv_freq": None}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        self.gpt_neox = GPTNeoXModel(config)
        self.embed_out = ParallelLMHead(config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            self.embed_out.tie_weights(self.gpt_neox.embed_in)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.gpt_neox.embed_in(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.gpt_neox(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.embed_out, hidden_states)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        zeros = torch.zeros(batch_size, self.config.hidden_size, dtype=dtype, device=device)
        return IntermediateTensors({"hidden_states": zeros})
