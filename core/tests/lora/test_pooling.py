"""Vectors made with adapters: those of a model whose weights were changed as the adapter says."""

import torch
import transformers
from torch import nn

from bestiary import LoRARequest, PoolingParams
from bestiary.api import ModelRegistry, SupportsLoRA, VllmConfig, VllmModelForPooling
from bestiary.nn import DispatchPooler, ReplicatedLinear
from bestiary.testing.adapters import change_of, random_adapter, write_adapter
from llama_plugin.llama import LlamaForCausalLM, LlamaModel

from .conftest import open_llm

RAW = PoolingParams(normalize=False)
PROMPTS = [[5, 9, 3, 77, 40, 8, 61, 12, 33], [4], [9] * 20]


@torch.inference_mode()
def test_each_text_has_its_adapter(checkpoint, weights, adapter):
    chosen = [LoRARequest("one", lora_path=adapter(1)), None, "one"]
    want = []
    for ids, wanted in zip(PROMPTS, chosen, strict=True):
        model = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
        if wanted is not None:
            changes = random_adapter(weights, seed=1)
            for name, tensor in weights.items():
                model.get_submodule(name).weight += change_of(name, tensor, changes)
        want.append(model.model(torch.tensor([ids])).last_hidden_state[0].mean(0))
    options = {"runner": "pooling", "pooling_type": "MEAN", "max_num_batched_tokens": 7}
    with open_llm(checkpoint, **options) as llm:
        found = llm.embed(PROMPTS, RAW, lora_request=chosen, use_tqdm=False)
    assert [each.lora_name for each in found] == ["one", None, "one"]
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(torch.tensor(ours.outputs.embedding), theirs, atol=1e-4, rtol=0)


class Classifier(nn.Module, VllmModelForPooling, SupportsLoRA):
    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = LlamaModel(config)
        self.score = ReplicatedLinear(config.hidden_size, config.num_labels, bias=False)
        self.pooler = DispatchPooler.for_seq_cls(vllm_config.model_config.pooler_config, classifier=self.score)

    def embed_input_ids(self, input_ids):
        return self.model.embed_input_ids(input_ids)

    def forward(self, input_ids, positions):
        return self.model(input_ids, positions)


@torch.inference_mode()
def test_an_adapter_may_change_the_layer_that_classifies(checkpoint, tmp_path):
    ModelRegistry.register_model("LlamaForSequenceClassification", Classifier)
    config = transformers.LlamaConfig.from_pretrained(checkpoint, num_labels=3, pad_token_id=0)
    model = transformers.LlamaForSequenceClassification(config)
    model.save_pretrained(tmp_path / "model")
    plain = {"score": model.score.weight.clone()}
    adapters = {name: random_adapter(plain, seed=seed) for seed, name in enumerate(("one", "two"))}
    chosen, want = ["one", None, "two"], []
    for ids, name in zip(PROMPTS, chosen, strict=True):
        change = change_of("score", plain["score"], adapters[name]) if name else 0
        model.score.weight.copy_(plain["score"] + change)
        want.append(model(torch.tensor([ids])).logits[0])
    requests = [name and LoRARequest(name, lora_path=write_adapter(tmp_path / name, adapters[name])) for name in chosen]
    with open_llm(tmp_path / "model", max_num_batched_tokens=7) as llm:
        found = llm.classify(PROMPTS, RAW, lora_request=requests, use_tqdm=False)
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(torch.tensor(ours.outputs.probs), theirs, atol=1e-4, rtol=0)
