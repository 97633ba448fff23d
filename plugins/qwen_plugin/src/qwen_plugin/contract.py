"""What this package promises of each architecture, and the tests that hold it to that. Needs `bestiary[testing]`."""

from __future__ import annotations

from bestiary.testing import ModelContract

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CHOICE = {
    "one expert a token": {"num_experts_per_tok": 1},
    "all experts a token": {"num_experts_per_tok": 5},
    "some layers without experts": {"mlp_only_layers": [1]},
    "every second layer with experts": {"decoder_sparse_step": 2},
}
ROPE = {
    "large theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "YaRN": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32
        }
    },
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


class TestQwen2(ModelContract):
    architecture = "Qwen2ForCausalLM"
    config = {"model_type": "qwen2", **SIZES}
    variants = {
        "as many key-value heads as heads": {"num_key_value_heads": 4},
        "tied embeddings": {"tie_word_embeddings": True},
        "windows in the upper layers": WINDOWS,
        **ROPE,
    }
    gguf = "qwen2"
    gguf_variants = ("tied embeddings", "large theta", "YaRN")


class TestQwen2Moe(ModelContract):
    architecture = "Qwen2MoeForCausalLM"
    config = {"model_type": "qwen2_moe", **SIZES, **EXPERTS, "shared_expert_intermediate_size": 56}
    variants = {
        **CHOICE,
        "weights that sum to one": {"norm_topk_prob": True},
        "no bias": {"qkv_bias": False},
        "windows in some layers": WINDOWS,
    }
    smooth_variant = "all experts a token"
    gguf = "qwen2moe"


class TestQwen3(ModelContract):
    architecture = "Qwen3ForCausalLM"
    config = {"model_type": "qwen3", **SIZES, "head_dim": 24}
    variants = {
        "one key-value head": {"num_key_value_heads": 1},
        "tied embeddings": {"tie_word_embeddings": True},
        "attention bias": {"attention_bias": True},
        "windows in the upper layers": WINDOWS,
        **ROPE,
    }
    gguf = "qwen3"
    gguf_variants = ("tied embeddings", "large theta", "YaRN")


class TestQwen3Moe(ModelContract):
    architecture = "Qwen3MoeForCausalLM"
    config = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "head_dim": 24, "norm_topk_prob": True}
    variants = {
        **CHOICE,
        "weights as the router gives them": {"norm_topk_prob": False},
        "attention bias": {"attention_bias": True},
        "a sliding window": {"use_sliding_window": True, "sliding_window": 6},
    }
    smooth_variant = "all experts a token"
    gguf = "qwen3moe"
