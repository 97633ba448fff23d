"""Experts move among processes while requests run: the answers are those of one process."""

from __future__ import annotations

import logging
import re
import warnings

import peft
import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.errors import UsageError

PLAIN = {"skip_tokenizer_init": True, "dtype": "float32", "device": "cpu", "progress": False, "max_model_len": 128}
EPLB = {
    "tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True,
    "eplb_config": {"num_redundant_experts": 2, "window_size": 8, "step_interval": 4},
}  # fmt: skip
PROMPTS = [[1, 5, 7, 9, 3], [4, 4, 2, 8] * 6, [9] * 30, [17]]
ASKED = [None, "one", "two"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=131, max_position_embeddings=128, num_local_experts=6, num_experts_per_tok=2,
        )
    )  # fmt: skip
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.15)
    folder = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(mixtral, tmp_path_factory):
    """Two, for attention and experts, and room for one at a time: it is put into its slot again and again."""
    paths = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=2 + seed, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that peft still uses
            wrapped = peft.get_peft_model(transformers.MixtralForCausalLM.from_pretrained(mixtral), config)
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name:
                parameter.data.normal_(0, 0.3)
        paths[name] = str(tmp_path_factory.mktemp(name))
        wrapped.save_pretrained(paths[name])
    return {"lora_modules": paths, "max_loras": 1}


def answers(llm):
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS * len(ASKED)]
    wanted = [name for name in ASKED for _ in PROMPTS]
    return [each.outputs[0] for each in llm.generate(prompts, GREEDY, use_tqdm=False, lora_request=wanted)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"pipeline_parallel_size": 2}, marks=pytest.mark.full),
        pytest.param({"data_parallel_size": 2}, marks=pytest.mark.full),
    ],
)
def test_answers_equal_one_process_while_experts_move(mixtral, adapters, caplog, options):
    with LLM(mixtral, **PLAIN, **adapters) as alone:
        expected = answers(alone)
    with LLM(mixtral, **PLAIN, **adapters, **EPLB, **options) as llm, caplog.at_level(logging.WARNING, "bestiary"):
        layers = llm.engine.executor.balancer.layers
        first = [layer.placement for layer in layers]
        found = answers(llm)
        assert any(layer.placement != before for layer, before in zip(layers, first, strict=True))
    assert len({tuple(each.token_ids) for each in expected}) > 2 * len(PROMPTS), "the adapters differ"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert [each.logprob for each in one.values()] == pytest.approx(
                [each.logprob for each in other.values()], abs=1e-4
            )
    said = [record.message for record in caplog.records if "experts moved" in record.message]
    before, after = map(
        float, re.search(r"had ([\d.]+) times an even share of the load, and now has ([\d.]+)", said[0]).groups()
    )
    assert after < before


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"enable_expert_parallel": False}, "enable_eplb"),
        ({"enable_eplb": False, "enable_expert_parallel": False}, "num_redundant_experts"),
        ({"tensor_parallel_size": 1}, "enable_eplb"),
        ({"eplb_config": {"num_redundant_experts": 1}}, "num_redundant_experts"),
        ({"eplb_config": {"redundant": 2}}, "eplb_config.redundant"),
        ({"eplb_config": {"step_interval": 0}}, "step_interval"),
        ({"deterministic": True}, "enable_eplb"),
    ],
)
def test_what_cannot_be_balanced_is_refused_before_anything_starts(mixtral, options, field):
    with pytest.raises(UsageError) as caught:
        LLM(mixtral, **PLAIN, **EPLB | options)
    assert caught.value.field == field


def test_a_model_without_experts_is_refused(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="LlamaForCausalLM has no experts to balance"):
        LLM(str(tmp_path), **PLAIN, **EPLB)
