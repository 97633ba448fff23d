"""Dense models of the corpus."""

import pytest
import torch
from corpus_check import SIZES, agree, check_equal, engine, rewritten

LLAMA = {"model_type": "llama", **SIZES}


@pytest.mark.parametrize("tied", [False, True])
def test_llama_as_written_now(tmp_path, tied, caplog):
    check_equal(tmp_path, "LlamaForCausalLM", "llama_now", {**LLAMA, "tie_word_embeddings": tied})
    assert "older spelling" not in caplog.text


def test_llama_as_written_for_0_9(tmp_path, caplog):
    check_equal(tmp_path, "LlamaForCausalLM", "llama_old", {**LLAMA, "rope_theta": 500000.0})
    for said in (
        "vllm.attention:Attention is an older spelling: it is vllm.model_executor.layers.attention:Attention now",
        "get_rope(rotary_dim=) is an older spelling",
        "compute_logits(…, sampling_metadata): it is compute_logits(hidden_states) now",
        "LlamaForCausalLM.get_input_embeddings: it is embed_input_ids now",
    ):
        assert caplog.text.count(said) == 1, said


@pytest.mark.parametrize(
    ("architecture", "name", "config"),
    [
        ("LlamaForCausalLM", "LlamaOfAnotherModel", LLAMA),
        ("LlamaForCausalLM", "LlamaOfOlderLayers", {**LLAMA, "rope_theta": 500000.0}),
        ("Phi3ForCausalLM", "OurPhi3", {"model_type": "phi3", **SIZES, "pad_token_id": 0}),
        ("Qwen2ForCausalLM", "OurQwen2", {"model_type": "qwen2", **SIZES}),
        ("Qwen3ForCausalLM", "OurQwen3", {"model_type": "qwen3", **SIZES, "head_dim": 24}),
    ],
)
def test_what_derives_from_vllms_own_models(tmp_path, architecture, name, config):
    check_equal(tmp_path, architecture, "derived", config, name=name)


GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 211}


@pytest.mark.parametrize("tied", [False, True])
def test_weights_turned_round_by_a_loader(tmp_path, tied):
    config = {"model_type": "gpt2", **GPT2, "tie_word_embeddings": tied}
    check_equal(tmp_path, "GPT2LMHeadModel", "gpt2_now", config)


@pytest.mark.parametrize("beside", [False, True])
def test_interleaved_heads_and_attention_beside_the_mlp(tmp_path, beside):
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    config = {"model_type": "gpt_neox", **sizes, "use_parallel_residual": beside}
    check_equal(tmp_path, "GPTNeoXForCausalLM", "gpt_neox_now", config)


@pytest.mark.parametrize("use_qk_norm", [False, True])
def test_norms_by_heads_and_scaled_logits_of_the_embedding(tmp_path, use_qk_norm):
    config = {"model_type": "cohere", **SIZES, "pad_token_id": 0, "use_qk_norm": use_qk_norm, "logit_scale": 0.25}
    check_equal(tmp_path, "CohereForCausalLM", "cohere_now", config)


def without_parts(reference):
    """A Llama of which a layer has no attention, another no MLP: what they add is zero, and is not written."""
    layers = reference.model.layers
    with torch.no_grad():
        layers[1].self_attn.o_proj.weight.zero_()
        layers[2].mlp.down_proj.weight.zero_()
    gone = ("layers.1.self_attn", "layers.1.input_layernorm", "layers.2.mlp", "layers.2.post_attention_layernorm")
    return {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith(_in_model(gone))}


def _in_model(names):
    return tuple(f"model.{name}" for name in names)


def test_layers_without_parts(tmp_path):
    whole = {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 1.5}}
    blocks = [whole, whole | {"attention": {"no_op": True}}, whole | {"ffn": {"no_op": True}}]
    fields = {**SIZES, "rms_norm_eps": 0.003, "hidden_act": "silu", "rope_theta": 50000.0}
    config = {"model_type": "llama", **SIZES, "rms_norm_eps": 0.003, "rope_theta": 50000.0}
    fields |= {"model_type": "searched", "block_configs": blocks, "num_key_value_heads": None}
    reference = rewritten(tmp_path, "DeciLMForCausalLM", config, fields, without_parts)
    agree(engine(tmp_path, "DeciLMForCausalLM", "deci_now"), reference)
