"""Mixtral in GGUF files, as data: those of architecture `llama` that have experts."""

from bestiary.api.gguf import GgufArchitecture

_BLOCK, _MOE = "blk.{bid}", "model.layers.{bid}.block_sparse_moe"

MIXTRAL = GgufArchitecture(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    config={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    tensors={
        f"{_BLOCK}.ffn_gate_inp": f"{_MOE}.gate",
        f"{_BLOCK}.ffn_gate_exps": f"{_MOE}.experts.w1",
        f"{_BLOCK}.ffn_down_exps": f"{_MOE}.experts.w2",
        f"{_BLOCK}.ffn_up_exps": f"{_MOE}.experts.w3",
    },
    rope_interleaved={"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"},
)
