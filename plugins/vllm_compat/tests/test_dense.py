"""Dense models of the corpus."""

import pytest
from corpus_check import SIZES, check_equal

LLAMA = {"model_type": "llama", **SIZES}


@pytest.mark.parametrize("tied", [False, True])
def test_llama_as_written_now(tmp_path, tied, caplog):
    check_equal(tmp_path, "LlamaForCausalLM", "llama_now", {**LLAMA, "tie_word_embeddings": tied})
    assert "older spelling" not in caplog.text


def test_llama_as_written_for_0_9(tmp_path, caplog):
    check_equal(tmp_path, "LlamaForCausalLM", "llama_old", LLAMA)
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
        ("Qwen2ForCausalLM", "OurQwen2", {"model_type": "qwen2", **SIZES}),
        ("Qwen3ForCausalLM", "OurQwen3", {"model_type": "qwen3", **SIZES, "head_dim": 24}),
    ],
)
def test_what_derives_from_vllms_own_models(tmp_path, architecture, name, config):
    check_equal(tmp_path, architecture, "derived", config, name=name)
