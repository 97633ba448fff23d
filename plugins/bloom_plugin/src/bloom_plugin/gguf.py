"""BLOOM in GGUF files, as data; the standard fields are core's."""

from bestiary.api.gguf import GgufArchitecture

BLOOM = GgufArchitecture(
    architecture="BloomForCausalLM",
    model_type="bloom",
    config={"layer_norm_epsilon": "attention.layer_norm_epsilon"},
    tensors={
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "blk.{bid}.attn_norm": "transformer.h.{bid}.input_layernorm",
        "blk.{bid}.attn_qkv": "transformer.h.{bid}.self_attention.query_key_value",
        "blk.{bid}.attn_output": "transformer.h.{bid}.self_attention.dense",
        "blk.{bid}.ffn_norm": "transformer.h.{bid}.post_attention_layernorm",
        "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.dense_h_to_4h",
        "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.dense_4h_to_h",
        "output_norm": "transformer.ln_f",
    },
    qkv_interleaved=("query_key_value",),
)
