"""The Qwen family in GGUF files, as data; the standard names and fields are core's."""

from bestiary.api.gguf import GgufArchitecture

_LAYER = "transformer.h.{bid}."

QWEN = GgufArchitecture(
    architecture="QWenLMHeadModel",
    model_type="qwen",
    config={
        "seq_length": "context_length",
        "kv_channels": "attention.key_length",
        "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
        "rotary_emb_base": "rope.freq_base",
    },
    constants={"use_dynamic_ntk": False, "use_logn_attn": False},  # of which the files know nothing
    tensors={
        "token_embd": "transformer.wte",
        "output_norm": "transformer.ln_f",
        "blk.{bid}.attn_norm": _LAYER + "ln_1",
        "blk.{bid}.attn_qkv": _LAYER + "attn.c_attn",
        "blk.{bid}.attn_output": _LAYER + "attn.c_proj",
        "blk.{bid}.ffn_norm": _LAYER + "ln_2",
        "blk.{bid}.ffn_gate": _LAYER + "mlp.w2",
        "blk.{bid}.ffn_up": _LAYER + "mlp.w1",
        "blk.{bid}.ffn_down": _LAYER + "mlp.c_proj",
    },
)
QWEN2 = GgufArchitecture(architecture="Qwen2ForCausalLM", model_type="qwen2")
QWEN3 = GgufArchitecture(architecture="Qwen3ForCausalLM", model_type="qwen3")
