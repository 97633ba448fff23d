"""Qwen 2 (arXiv 2407.10671) as others take it apart: Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import nn

from bestiary.api import VllmConfig
from bestiary.nn import RMSNorm

from .llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel


class Qwen2MLP(LlamaMLP):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__(hidden_size, intermediate_size, hidden_act, quant_config, prefix=prefix)


class Qwen2Attention(LlamaAttention):
    """Its biases are not the configuration's to choose."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"bias": True, "bias_o_proj": False})


class Qwen2DecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "", **options: Any) -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=Qwen2Attention, **options)


class Qwen2Model(LlamaModel):
    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", decoder_layer_type: type[nn.Module] = Qwen2DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=decoder_layer_type)


class Qwen2ForCausalLM(LlamaForCausalLM):
    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = Qwen2DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


class Qwen3Attention(LlamaAttention):
    """Qwen 3 (arXiv 2505.09388): each head's queries and keys are normed before they are rotated."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, positions: Any, hidden_states: Any) -> Any:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


class Qwen3DecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "", **options: Any) -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=Qwen3Attention, **options)


class Qwen3Model(Qwen2Model):
    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", decoder_layer_type: type[nn.Module] = Qwen3DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=decoder_layer_type)


class Qwen3ForCausalLM(LlamaForCausalLM):
    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = Qwen3DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
