"""What this package promises of each architecture, and the tests that hold it to that. Needs `bestiary[testing]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bestiary.testing import ModelContract

from .reference import SMALL, ReferenceQwen

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 128,
}
EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CHOICE: dict[str, dict[str, Any]] = {
    "one expert a token": {"num_experts_per_tok": 1},
    "all experts a token": {"num_experts_per_tok": 5},
    "some layers without experts": {"mlp_only_layers": [1]},
    "every third layer with experts": {"decoder_sparse_step": 3},
}


def rope(kind: str, theta: float = 1e4, **more: Any) -> Mapping[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


ROPE = {
    "large theta": rope("default", 1e6),
    "linear scaling": rope("linear", factor=3.0),
    "dynamic scaling": rope("dynamic", factor=2.0),
    "YaRN": rope("yarn", factor=4.0, original_max_position_embeddings=32),
}


def longrope(pairs: int) -> Mapping[str, Any]:
    """Its factor follows from the two lengths; of one set, so that prompts of every length take it."""
    factors = [1.0 + 0.3 * pair for pair in range(pairs)]
    return rope("longrope", original_max_position_embeddings=32, short_factor=factors, long_factor=factors)


WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
WINDOW_KINDS = {
    "windows in the upper layers": WINDOWS,
    "a window in every layer": WINDOWS | {"max_window_layers": 0},
    "a window that is not used": {"use_sliding_window": False, "sliding_window": 4},
    "windows by layer": WINDOWS | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
DUAL_CHUNK = {"dual-chunk attention": {"dual_chunk_attention_config": {"chunk_size": 64, "local_size": 16}}}


class TestQWen(ModelContract):
    """Right up to `seq_length` tokens: the kit's reference knows no prompt but takes every sequence for one."""

    architecture = "QWenLMHeadModel"
    config = SMALL | {"seq_length": 60}
    variants = {
        "no dynamic NTK": {"use_dynamic_ntk": False},
        "no log-n attention": {"use_logn_attn": False},
        "another base": {"rotary_emb_base": 1e6},
        "LongRoPE": {"use_dynamic_ntk": False, **longrope(8)},
        "wide heads": {"kv_channels": 24},
        "a large epsilon": {"layer_norm_epsilon": 0.1},
        "all biases": {"no_bias": False},
        "tied embeddings": {"tie_word_embeddings": True},
        "half of each head is rotated": {"rotary_pct": 0.5},
        "scores are not scaled": {"scale_attn_weights": False},
    }
    gguf = "qwen"

    def reference(self, config: dict[str, Any]) -> nn.Module:
        return ReferenceQwen(config)


class TestQwen2(ModelContract):
    architecture = "Qwen2ForCausalLM"
    config = {"model_type": "qwen2", **SIZES}
    variants = {
        "as many key-value heads as heads": {"num_key_value_heads": 4},
        "wide heads": {"head_dim": 24},
        "tied embeddings": {"tie_word_embeddings": True},
        "GELU": {"hidden_act": "gelu"},
        **WINDOW_KINDS,
        **ROPE,
        "LongRoPE": longrope(8),
    }
    refused = DUAL_CHUNK
    gguf = "qwen2"
    gguf_variants = ("tied embeddings", "large theta", "YaRN")


class TestQwen2Moe(ModelContract):
    architecture = "Qwen2MoeForCausalLM"
    config = {"model_type": "qwen2_moe", **SIZES, **EXPERTS, "shared_expert_intermediate_size": 56}
    variants = {
        **CHOICE,
        "wide heads": {"head_dim": 24},
        "tied embeddings": {"tie_word_embeddings": True},
        "GELU": {"hidden_act": "gelu", "mlp_only_layers": [1]},
        "weights that sum to one": {"norm_topk_prob": True},
        "no bias": {"qkv_bias": False},
        "windows in some layers": WINDOWS,
        "LongRoPE": longrope(8),
    }
    smooth_variant = "all experts a token"
    refused = DUAL_CHUNK
    gguf = "qwen2moe"


class TestQwen3(ModelContract):
    architecture = "Qwen3ForCausalLM"
    config = {"model_type": "qwen3", **SIZES, "head_dim": 24}
    variants = {
        "as many key-value heads as heads": {"num_key_value_heads": 4},
        "narrow heads": {"head_dim": 8},
        "heads wider than the model": {"head_dim": 32, "num_key_value_heads": 1},
        "tied embeddings": {"tie_word_embeddings": True},
        "GELU": {"hidden_act": "gelu"},
        "attention bias": {"attention_bias": True},
        **WINDOW_KINDS,
        **ROPE,
        "LongRoPE": longrope(12),
    }
    refused = DUAL_CHUNK
    gguf = "qwen3"
    gguf_variants = ("tied embeddings", "large theta", "YaRN")


class TestQwen3Moe(ModelContract):
    architecture = "Qwen3MoeForCausalLM"
    config = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "norm_topk_prob": True}
    variants = {
        "wide heads": {"head_dim": 24},
        **CHOICE,
        "tied embeddings": {"tie_word_embeddings": True},
        "GELU": {"hidden_act": "gelu", "mlp_only_layers": [1]},
        "weights as the router gives them": {"norm_topk_prob": False},
        "attention bias": {"attention_bias": True},
        "a sliding window": {"use_sliding_window": True, "sliding_window": 6},
        "LongRoPE": longrope(8),
    }
    smooth_variant = "all experts a token"
    refused = DUAL_CHUNK
    gguf = "qwen3moe"
