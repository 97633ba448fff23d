"""Gemma 2 and 3 as a file for vLLM 0.33 has them: sliding and full layers, soft caps, norms on both sides of a part."""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import GeluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, extract_layer_index, maybe_prefix


class Attn(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, ranks = vllm_config.model_config.hf_config, get_tensor_model_parallel_world_size()
        kind = config.layer_types[extract_layer_index(prefix)]
        size = self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads // ranks, max(1, config.num_key_value_heads // ranks)
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, size, config.num_attention_heads, config.num_key_value_heads, bias=False
        )
        self.o_proj = RowParallelLinear(config.num_attention_heads * size, config.hidden_size, bias=False)
        self.q_norm = self.k_norm = None
        parameters = config.rope_parameters
        if config.model_type == "gemma3_text":
            self.q_norm, self.k_norm = (GemmaRMSNorm(size, eps=config.rms_norm_eps) for _ in range(2))
            parameters = parameters[kind]
        self.rotary_emb = get_rope(
            size, max_position=config.max_position_embeddings, rope_parameters=parameters, is_neox_style=True
        )
        self.attn = Attention(
            self.heads,
            size,
            config.query_pre_attn_scalar**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            logits_soft_cap=config.attn_logit_softcapping,
            per_layer_sliding_window=config.sliding_window if kind == "sliding_attention" else None,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        q, k, v = self.qkv_proj(hidden_states)[0].split(widths, dim=-1)
        if self.q_norm is not None:
            q = self.q_norm(q.unflatten(-1, (self.heads, self.head_dim))).flatten(-2, -1)
            k = self.k_norm(k.unflatten(-1, (self.kv_heads, self.head_dim))).flatten(-2, -1)
        q, k = self.rotary_emb(positions, q, k)
        return self.o_proj(self.attn(q, k, v))[0]


class MLP(nn.Module):
    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, [config.intermediate_size] * 2, bias=False)
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = GeluAndMul(approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class Layer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.self_attn, self.mlp = Attn(vllm_config, f"{prefix}.self_attn"), MLP(vllm_config)
        for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            setattr(self, f"{part}_layernorm", GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            hidden_states, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.post_attention_layernorm(self.self_attn(positions, hidden_states))
        hidden_states, residual = self.pre_feedforward_layernorm(hidden_states, residual)
        return self.post_feedforward_layernorm(self.mlp(hidden_states)), residual


@support_torch_compile
class Model(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(vllm_config, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.register_buffer("normalizer", torch.tensor(config.hidden_size**0.5), persistent=False)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden_states, residual = self.embed_tokens(input_ids) * self.normalizer, None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return self.norm(hidden_states, residual)[0]


class Gemma2ForCausalLM(nn.Module):
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.logits_processor = LogitsProcessor(config.vocab_size, soft_cap=config.final_logit_softcapping)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None) -> torch.Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.model.embed_tokens, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    pass
