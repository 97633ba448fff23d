"""GPT-NeoX as a file for vLLM has it: attention and MLP beside each other, queries, keys and values interleaved by
heads in the checkpoint and taken apart by hand, tensors copied straight into parameters."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import GPTNeoXConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import make_layers, maybe_prefix


class Attn(nn.Module):
    def __init__(self, config: GPTNeoXConfig, cache_config, quant_config, prefix: str) -> None:
        super().__init__()
        total = config.num_attention_heads
        assert total % get_tensor_model_parallel_world_size() == 0
        self.num_heads = total // get_tensor_model_parallel_world_size()
        self.head_size = config.hidden_size // total
        self.query_key_value = QKVParallelLinear(
            config.hidden_size,
            self.head_size,
            total,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.query_key_value",
        )
        self.dense = RowParallelLinear(
            config.hidden_size,
            config.hidden_size,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.dense",
        )
        self.rotary_emb = get_rope(
            self.head_size, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(
            self.num_heads, self.head_size, self.head_size**-0.5, cache_config=cache_config, prefix=f"{prefix}.attn"
        )

    def forward(self, position_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.query_key_value(hidden_states)
        q, k, v = qkv.chunk(chunks=3, dim=-1)
        q, k = self.rotary_emb(position_ids, q, k)
        output, _ = self.dense(self.attn(q, k, v))
        return output


class MLP(nn.Module):
    def __init__(self, config: GPTNeoXConfig, quant_config, prefix: str) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnParallelLinear(
            config.hidden_size, config.intermediate_size, quant_config=quant_config, prefix=f"{prefix}.dense_h_to_4h"
        )
        self.dense_4h_to_h = RowParallelLinear(
            config.intermediate_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.dense_4h_to_h"
        )
        self.act = get_act_fn(config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states, _ = self.dense_h_to_4h(hidden_states)
        hidden_states, _ = self.dense_4h_to_h(self.act(hidden_states))
        return hidden_states


class Layer(nn.Module):
    def __init__(self, config: GPTNeoXConfig, cache_config, quant_config, prefix: str) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attn(config, cache_config, quant_config, prefix=f"{prefix}.attention")
        self.mlp = MLP(config, quant_config, prefix=f"{prefix}.mlp")

    def forward(self, position_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attention(position_ids, self.input_layernorm(hidden_states))
        if self.use_parallel_residual:
            return self.mlp(self.post_attention_layernorm(hidden_states)) + attended + hidden_states
        attended = attended + hidden_states
        return self.mlp(self.post_attention_layernorm(attended)) + attended


class Model(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.embed_in = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        _, _, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: Layer(config, vllm_config.cache_config, vllm_config.quant_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids, position_ids, inputs_embeds=None):
        hidden_states = self.embed_in(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden_states = layer(position_ids, hidden_states)
        return self.final_layer_norm(hidden_states)


class GPTNeoXForCausalLM(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.gpt_neox = Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "gpt_neox"))
        self.embed_out = ParallelLMHead(
            self.config.vocab_size, self.config.hidden_size, prefix=maybe_prefix(prefix, "embed_out")
        )
        self.logits_processor = LogitsProcessor(self.config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.gpt_neox.embed_in(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        return self.gpt_neox(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.embed_out, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params = dict(self.named_parameters())
        heads = self.config.num_attention_heads
        loaded = set()
        for name, weight in weights:
            if "rotary_emb.inv_freq" in name or "attention.bias" in name or "attention.masked_bias" in name:
                continue
            param = params[name]
            if "query_key_value" in name:
                by_head = weight.unflatten(0, (heads, 3, -1))
                param.weight_loader(param, by_head.transpose(0, 1).flatten(0, 2))
            elif param.shape == weight.shape:
                param.data.copy_(weight)
            else:
                param.weight_loader(param, weight)
            loaded.add(name)
        return loaded
