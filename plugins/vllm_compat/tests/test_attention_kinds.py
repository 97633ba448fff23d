"""Latent attention, hybrids of sliding and full layers, soft caps and sinks: models of the corpus."""

import pytest
import torch
from corpus_check import SIZES, check_equal, engine, model_class, prompt, reference_of

import bestiary_vllm
from bestiary import SamplingParams
from bestiary.api import ModelRegistry
from bestiary.engine.footprint import footprint
from bestiary.engine.model_layers import attention_layers
from bestiary.nn import Attention, MLAAttention
from bestiary.testing.logits import prompt_logits
from bestiary.testing.ranks import Ranks
from bestiary.testing.reference import reference_logits

LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
DEEPSEEK = {**SIZES, **LATENT, **EXPERTS, "num_key_value_heads": 4, "first_k_dense_replace": 1, "pad_token_id": 0}
DEEPSEEK |= {"rms_norm_eps": 1e-6}  # as transformers has it in latent attention whatever is configured
V2 = {"model_type": "deepseek_v2", **DEEPSEEK, "q_lora_rank": None, "routed_scaling_factor": 1.5}
V3 = {"model_type": "deepseek_v3", **DEEPSEEK, "q_lora_rank": 24, "n_group": 2, "topk_group": 1}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip


def attention_of(llm):
    return [each for each in llm.engine.executor.runner.model.modules() if isinstance(each, MLAAttention | Attention)]


@pytest.mark.parametrize(("architecture", "config"), [("DeepseekV2ForCausalLM", V2), ("DeepseekV3ForCausalLM", V3)])
def test_latent_attention(tmp_path, architecture, config):
    llm = check_equal(tmp_path, architecture, "deepseek_now", config)
    layers = attention_of(llm)
    assert {type(each) for each in layers} == {MLAAttention}
    assert {each.get_kv_cache_spec().bytes_per_token for each in layers} == {4 * (16 + 8)}
    assert footprint(llm.engine.executor.runner.model, llm.engine.vllm_config).kv_bytes_per_token == 3 * 4 * (16 + 8)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=pytest.mark.full)])
def test_latent_attention_on_a_gpu(tmp_path, deterministic):
    check_equal(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", V3, device="cuda", deterministic=deterministic)


def test_latent_attention_over_stretched_positions(tmp_path):
    check_equal(tmp_path, "DeepseekV2ForCausalLM", "deepseek_now", {**V2, "q_lora_rank": 24, "rope_parameters": YARN})


def test_the_same_with_its_heads_written_out(tmp_path):
    llm = check_equal(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", {**V3, "use_mla": False})
    assert {(each.head_size, each.head_size_v) for each in attention_of(llm)} == {(24, 12)}


def test_latent_attention_of_the_reference_backend(tmp_path):
    check_equal(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", V3, attention_backend="reference")


def test_latent_attention_bit_by_bit(tmp_path):
    llm = check_equal(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", V3, deterministic=True)
    whole = prompt_logits(llm, prompt(23))
    assert all(torch.equal(prompt_logits(llm, prompt(23), chunk=size), whole) for size in (1, 3, 16))


def test_latents_are_computed_again_after_a_preemption(tmp_path):
    """Five blocks for three requests that need three each: they push each other out, and nobody notices."""
    reference_of(tmp_path, "DeepseekV3ForCausalLM", V3)
    llm = engine(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", block_size=16, num_gpu_blocks_override=5,
                 max_model_len=48)  # fmt: skip
    prompts = [list(range(first, first + 20)) for first in (3, 60, 120)]
    greedy = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    together = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy)
    assert llm.engine.stats().preemptions > 0
    for ids, answer in zip(prompts, together, strict=True):
        alone = llm.generate([{"prompt_token_ids": ids}], greedy)[0]
        assert answer.outputs[0].token_ids == alone.outputs[0].token_ids


def test_quantized_weights_of_latents(tmp_path):
    """The absorbed weights are what the quantized projection makes of unit vectors."""
    reference_of(tmp_path, "DeepseekV3ForCausalLM", V3)
    llm = engine(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", quantization="int8")
    for layer in attention_of(llm):
        made = layer.kv_b_proj(torch.eye(16))[0].t()
        torch.testing.assert_close(layer._taken()[0].flatten(0, 1), made)
        assert layer.bytes_added() == made.numel() * 4


def test_an_adapter_cannot_change_what_is_never_multiplied(tmp_path):
    reference_of(tmp_path, "DeepseekV3ForCausalLM", V3)
    llm = engine(tmp_path, "DeepseekV3ForCausalLM", "deepseek_now", enable_lora=True)
    targets = llm.engine.executor.runner.adapters.slots.target_names
    assert {"q_b_proj", "o_proj"} <= set(targets)
    assert "kv_b_proj" not in targets


GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("architecture", "kind"), [("Gemma2ForCausalLM", "gemma2"), ("Gemma3ForCausalLM", "gemma3_text")]
)
def test_sliding_and_full_layers_with_soft_caps(tmp_path, architecture, kind):
    caps = {"attn_logit_softcapping": 20.0 if kind == "gemma2" else None, "final_logit_softcapping": 10.0}
    layers = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    llm = check_equal(tmp_path, architecture, "gemma_now", {"model_type": kind, **GEMMA, **caps, **layers})
    assert [each.spec.sliding_window for each in attention_of(llm)] == [8, None, 8]


OSS = {
    "model_type": "gpt_oss", **SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 8, "pad_token_id": 0,
}  # fmt: skip


def test_sinks_and_experts_with_biases(tmp_path):
    llm = check_equal(tmp_path, "GptOssForCausalLM", "gpt_oss_now", OSS)
    assert all(each.spec.has_sinks for each in attention_of(llm))


@pytest.mark.parametrize(
    ("architecture", "module", "config"),
    [("DeepseekV3ForCausalLM", "deepseek_now", V3), ("GptOssForCausalLM", "gpt_oss_now", OSS)],
)
def test_heads_are_divided_and_latents_are_not(tmp_path, architecture, module, config):
    reference = reference_of(tmp_path, architecture, config)
    ModelRegistry.register_model(architecture, model_class(module, architecture))
    with bestiary_vllm.serving(), Ranks(tmp_path, tensor_parallel_size=2) as ranks:
        for ids in (prompt(5), prompt(40)):
            want = reference_logits(reference, ids)
            for ends in ((), (3, 4)):
                torch.testing.assert_close(ranks.prompt_logits(ids, ends), want, atol=1e-4, rtol=1e-4)
        layers = [attention_layers(runner.model) for runner in ranks.runners]
        assert {each.num_heads for part in layers for each in part.values()} == {2}
        if module == "deepseek_now":
            assert {each.get_kv_cache_spec().head_size for part in layers for each in part.values()} == {16 + 8}
