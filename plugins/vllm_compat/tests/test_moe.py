"""Mixtures of experts of the corpus, in the spellings of several versions."""

from pathlib import Path

import pytest
from corpus_check import SIZES, answers_as, check_equal, engine, reference_of

MIXTRAL = {"model_type": "mixtral", **SIZES, "num_local_experts": 6, "num_experts_per_tok": 2}
QWEN2 = {
    "model_type": "qwen2_moe", **SIZES, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
GLM4 = {
    "model_type": "glm4_moe", **SIZES, "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "n_shared_experts": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7, "attention_bias": True, "pad_token_id": 0,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", **SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 8, "intermediate_size": 48, "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    },
}  # fmt: skip


def test_experts_as_written_for_0_9(tmp_path, caplog):
    check_equal(tmp_path, "MixtralForCausalLM", "moe_old", MIXTRAL)
    said = (
        "vllm.model_executor.layers.fused_moe:FusedMoE is an older spelling: it is "
        "vllm.model_executor.layers.fused_moe:FusedMoEFactory now"
    )
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_shared_experts_as_written_for_0_15(tmp_path, norm_topk_prob):
    config = {**QWEN2, "norm_topk_prob": norm_topk_prob}
    check_equal(tmp_path, "Qwen2MoeForCausalLM", "moe_old", config)


@pytest.mark.parametrize("name", ["Glm4MoeForCausalLM", "LoadsByLayers"])
def test_one_factory_for_gate_routed_and_shared_experts(tmp_path, name, caplog):
    check_equal(tmp_path, "Glm4MoeForCausalLM", "moe_now", GLM4, name=name)
    assert "FusedMoEFactory" not in caplog.text


def test_experts_with_biases_and_a_loader_of_their_own(tmp_path):
    check_equal(tmp_path, "GptOssForCausalLM", "moe_biased", GPT_OSS)


@pytest.mark.full
@pytest.mark.parametrize("whole_experts", [False, True])
def test_several_processes_equal_one(tmp_path, whole_experts, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the other ranks import the class as well
    reference = reference_of(tmp_path, "Qwen2MoeForCausalLM", QWEN2)
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": whole_experts}
    with engine(tmp_path, "Qwen2MoeForCausalLM", "moe_old", **options) as llm:
        answers_as(llm, reference)
