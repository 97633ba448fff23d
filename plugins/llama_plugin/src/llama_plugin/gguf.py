"""Llama in GGUF files, as data; the standard names and fields are core's."""

from bestiary.api.gguf import GgufArchitecture

LLAMA = GgufArchitecture(
    architecture="LlamaForCausalLM",
    model_type="llama",
    rope_interleaved={"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"},
)
