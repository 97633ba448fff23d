"""GPT-NeoX in GGUF files: what differs from the standard names and fields. Imports no torch."""

from bestiary.api import GgufArchitecture

LAYER = "gpt_neox.layers.{bid}."

GPT_NEOX = GgufArchitecture(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    config={
        "layer_norm_eps": "attention.layer_norm_epsilon",
        "use_parallel_residual": "use_parallel_residual",
    },
    tensors={
        "token_embd": "gpt_neox.embed_in",
        "blk.{bid}.attn_norm": LAYER + "input_layernorm",
        "blk.{bid}.attn_qkv": LAYER + "attention.query_key_value",
        "blk.{bid}.attn_output": LAYER + "attention.dense",
        "blk.{bid}.ffn_norm": LAYER + "post_attention_layernorm",
        "blk.{bid}.ffn_up": LAYER + "mlp.dense_h_to_4h",
        "blk.{bid}.ffn_down": LAYER + "mlp.dense_4h_to_h",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
    },
    qkv_interleaved=("query_key_value",),
)
