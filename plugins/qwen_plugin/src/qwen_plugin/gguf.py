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

_EXPERTS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
QWEN2_MOE = GgufArchitecture(
    architecture="Qwen2MoeForCausalLM",
    model_type="qwen2_moe",
    config=_EXPERTS | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
)
QWEN3_MOE = GgufArchitecture(
    architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe", config=_EXPERTS, constants={"norm_topk_prob": True}
)
