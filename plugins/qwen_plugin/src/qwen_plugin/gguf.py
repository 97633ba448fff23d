"""The Qwen family in GGUF files, as data; the standard names and fields are core's."""

from bestiary.api.gguf import GgufArchitecture

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
