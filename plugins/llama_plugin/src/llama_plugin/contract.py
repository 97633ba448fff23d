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
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}


def rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


class TestLlama(ModelContract):
    architecture = "LlamaForCausalLM"
    config = {"model_type": "llama", **SIZES}
    variants = {
        "as many key-value heads as heads": {"num_key_value_heads": 4},
        "one key-value head": {"num_key_value_heads": 1},
        "tied embeddings": {"tie_word_embeddings": True},
        "attention bias": {"attention_bias": True},
        "MLP bias": {"mlp_bias": True},
        "wide heads": {"head_dim": 24},
        "narrow heads": {"head_dim": 8},
        "GELU": {"hidden_act": "gelu"},
        "large theta": rope("default", rope_theta=1e6),
        "linear scaling": rope("linear", factor=3.0),
        "dynamic scaling": rope("dynamic", factor=2.0),
        "Llama 3 scaling": rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
        "YaRN": rope("yarn", factor=4.0, original_max_position_embeddings=32),
        "LongRoPE": rope("longrope", factor=4.0, original_max_position_embeddings=128, **LONG),
        "LongRoPE whose factor follows from the lengths": rope(
            "longrope", original_max_position_embeddings=32, **LONG | {"short_factor": LONG["long_factor"]}
        ),
    }
    gguf = "llama"
    gguf_variants = (
        "one key-value head", "tied embeddings", "wide heads", "linear scaling", "Llama 3 scaling", "YaRN",
    )  # fmt: skip


class TestFirstSpelling(ModelContract):
    """The name in the first converted checkpoints."""

    architecture = "LLaMAForCausalLM"
    config = TestLlama.config


class TestMistral(ModelContract):
    architecture = "MistralForCausalLM"
    config = {"model_type": "mistral", **SIZES, "sliding_window": 16}
    variants = {"a narrow window": {"sliding_window": 4}, "no window": {"sliding_window": None}}


class TestPhi3(ModelContract):
    """The same mathematics from fused projections."""

    architecture = "Phi3ForCausalLM"
    config = {"model_type": "phi3", **SIZES, "pad_token_id": 0, "sliding_window": None}
    variants = {
        "rotation of half a head": {"partial_rotary_factor": 0.5},
        "a window": {"sliding_window": 8},
        "LongRoPE": rope("longrope", factor=4.0, original_max_position_embeddings=128, **LONG),
    }
