"""What core does with any model, with model files for vLLM: vectors, classes, adapters, quantized weights, ranks."""

import json
from pathlib import Path

import pytest
import torch
from corpus_check import SIZES, agree, answers_as, engine, prompt, reference_of
from safetensors.torch import load_file, save_file

from bestiary import LoRARequest, PoolingParams
from bestiary.testing.adapters import change_of, random_adapter, write_adapter

LLAMA = {"model_type": "llama", **SIZES}
PROMPTS = [prompt(length) for length in (1, 5, 17)]
RAW = PoolingParams(normalize=False)


@torch.inference_mode()
def test_a_model_that_generates_gives_vectors(tmp_path):
    reference = reference_of(tmp_path, "LlamaForCausalLM", LLAMA)
    _only_the_model(tmp_path)
    with engine(tmp_path, "LlamaForCausalLM", "derived", "OurLlamaForEmbedding") as llm:
        found = llm.embed(PROMPTS, RAW, use_tqdm=False)
    for ids, ours in zip(PROMPTS, found, strict=True):
        want = reference.model(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(torch.tensor(ours.outputs.embedding), want, atol=1e-4, rtol=1e-4)


def _only_the_model(folder):
    """A checkpoint as models for vectors have it: no head, no prefix."""
    stored = load_file(folder / "model.safetensors")
    inside = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name.startswith("model.")}
    save_file(inside, folder / "model.safetensors")


@torch.inference_mode()
def test_a_model_that_generates_classifies(tmp_path):
    config = {**LLAMA, "num_labels": 3, "pad_token_id": 0}
    reference = reference_of(tmp_path, "LlamaForSequenceClassification", config)
    architecture = "LlamaForSequenceClassification"
    with engine(tmp_path, architecture, "derived", "OurLlamaForSequenceClassification") as llm:
        found = llm.classify(PROMPTS, RAW, use_tqdm=False)
    for ids, ours in zip(PROMPTS, found, strict=True):
        want = reference(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(torch.tensor(ours.outputs.probs), want, atol=1e-4, rtol=1e-4)


def test_an_adapter_changes_a_served_model(tmp_path):
    reference = reference_of(tmp_path, "LlamaForCausalLM", LLAMA)
    stored = load_file(tmp_path / "model.safetensors")
    weights = {name.removesuffix(".weight"): tensor for name, tensor in stored.items() if "_proj" in name}
    adapter = random_adapter(weights)
    path = write_adapter(tmp_path / "adapter", adapter)
    with torch.no_grad():
        for name, tensor in weights.items():
            reference.get_submodule(name).weight += change_of(name, tensor, adapter)
    with engine(tmp_path, "LlamaForCausalLM", "llama_now", enable_lora=True) as llm:
        answers_as(llm, reference, lora_request=LoRARequest("one", lora_path=path))


INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
        }
    },
}


@pytest.mark.parametrize("module", ["llama_now", "llama_old"])
def test_quantized_weights_find_their_places_in_fused_layers(tmp_path, module):
    reference = reference_of(tmp_path, "LlamaForCausalLM", LLAMA)
    stored = load_file(tmp_path / "model.safetensors")
    for name in [name for name in stored if "_proj.weight" in name]:
        scale = stored[name].abs().amax(1, keepdim=True) / 127
        stored[name], stored[name + "_scale"] = (stored[name] / scale).round().to(torch.int8), scale
        with torch.no_grad():
            reference.get_parameter(name).copy_(stored[name].float() * scale)
    save_file(stored, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": INT8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    agree(engine(tmp_path, "LlamaForCausalLM", module), reference)


@pytest.mark.full
@pytest.mark.parametrize("layout", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_several_processes_equal_one(tmp_path, layout, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the other ranks import the class as well
    reference = reference_of(tmp_path, "LlamaForCausalLM", LLAMA)
    with engine(tmp_path, "LlamaForCausalLM", "llama_now", **layout) as llm:
        answers_as(llm, reference)
