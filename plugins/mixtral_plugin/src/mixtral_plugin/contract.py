"""What this package promises of Mixtral, and the tests that hold it to that. Needs `bestiary[testing]`."""

from __future__ import annotations

from bestiary.testing import ModelContract

FACTORS = [1.0 + 0.3 * pair for pair in range(8)]


class TestMixtral(ModelContract):
    architecture = "MixtralForCausalLM"
    config = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "vocab_size": 211,
        "max_position_embeddings": 128,
    }
    variants = {
        "one expert a token": {"num_experts_per_tok": 1},
        "all experts a token": {"num_local_experts": 3, "num_experts_per_tok": 3},
        "as many key-value heads as heads": {"num_key_value_heads": 4},
        "wide heads": {"head_dim": 24},
        "a sliding window": {"sliding_window": 8},
        "tied embeddings": {"tie_word_embeddings": True},
        "GELU": {"hidden_act": "gelu"},
        "LongRoPE": {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "original_max_position_embeddings": 32,  # the factor follows from the two lengths
                "short_factor": FACTORS,
                "long_factor": FACTORS,
            },
        },
    }
    smooth_variant = "all experts a token"
    gguf = "llama.expert_count"
    gguf_variants = ("wide heads", "tied embeddings")
