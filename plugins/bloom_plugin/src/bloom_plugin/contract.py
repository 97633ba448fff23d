"""What this package promises of BLOOM, and the tests that hold it to that. Needs `bestiary[testing]`."""

from __future__ import annotations

from typing import Any

from bestiary.testing import ModelContract


class TestBloom(ModelContract):
    architecture = "BloomForCausalLM"
    config = {
        "model_type": "bloom",
        "hidden_size": 96,
        "n_head": 6,
        "n_layer": 3,
        "vocab_size": 211,
        "seq_length": 128,
    }
    variants = {
        "a power of two of heads": {"n_head": 4},
        "twelve heads": {"n_head": 12},
        "one head": {"n_head": 1},
        "residual after the norm": {"apply_residual_connection_post_layernorm": True},
        "untied head": {"tie_word_embeddings": False},
        "a large epsilon": {"layer_norm_epsilon": 0.1},
    }
    other_names = {"the bare model's": (r"^transformer\.", "")}  # bigscience/bloom
    gguf = "bloom"
    gguf_variants = ("a power of two of heads", "untied head", "a large epsilon")

    def gguf_metadata(self, writer: Any, config: Any) -> None:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_head_count_kv(config.n_head)

    def gguf_rows(self, name: str, array: Any, config: Any) -> Any:
        """Converters put all queries' rows first, then all keys', then all values'."""
        if ".query_key_value." not in name:
            return array
        return array.reshape(config.n_head, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
