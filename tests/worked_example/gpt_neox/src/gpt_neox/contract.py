"""What GPTNeoXForCausalLM promises: `pytest` and `bestiary certify` hold it to that. Imported by nothing else."""

from bestiary.testing import ModelContract


class TestGPTNeoX(ModelContract):
    architecture = "GPTNeoXForCausalLM"
    config = {
        "model_type": "gpt_neox",
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 128,
        "rotary_pct": 0.5,  # other than the quarter that transformers assumes: a port that never asks must not pass
    }
    variants = {
        "one after the other": {"use_parallel_residual": False},
        "a quarter of each head is rotated": {"rotary_pct": 0.25},
        "all of each head is rotated": {"rotary_pct": 1.0},
        "attention without biases": {"attention_bias": False},
        "ReLU": {"hidden_act": "relu"},
        "tied embeddings": {"tie_word_embeddings": True},
    }
    gguf = "gptneox"
    gguf_variants = ("one after the other", "all of each head is rotated")

    def gguf_metadata(self, writer, config):
        writer.add_parallel_residual(config.use_parallel_residual)

    def gguf_rows(self, name, array, config):
        """The converter puts all queries first, then all keys, then all values."""
        if ".query_key_value." not in name:
            return array
        return array.reshape(config.num_attention_heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
