"""Adapters on native kernels: mixed batches, recorded, while slots are given to others."""

import warnings

import peft
import pytest
import torch
import transformers
from models import PROMPTS, checkpoint, furthest, llm, said

from bestiary.api.lora import LoRARequest


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Name → directory, of different ranks and parts of the tiny Llama."""
    found = {}
    for name, rank, targets in (
        ("all", 5, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("some", 2, ["v_proj", "down_proj"]),
        ("ends", 3, ["embed_tokens"]),
    ):
        base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied embeddings
            made = peft.get_peft_model(base, peft.LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM"))
            torch.manual_seed(rank)
            for parameter, value in made.named_parameters():
                if "lora_" in parameter:
                    value.data.normal_(0, 0.2)
            found[name] = str(tmp_path_factory.mktemp(name))
            made.save_pretrained(found[name])
    return found


def asked(engine, adapters, names):
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(names))]
    requests = [None if name is None else LoRARequest(name, lora_path=adapters[name]) for name in names]
    return said(engine, prompts, lora_request=requests)


def options(most):
    return {"enable_lora": True, "max_loras": most, "max_lora_rank": 8}


def test_a_mixed_batch(adapters):
    names = ["all", None, "some", "ends", "all", "some"]
    with llm(checkpoint("llama"), "torch", **options(3)) as torch_:
        want = asked(torch_, adapters, names)
    with llm(checkpoint("llama"), **options(3)) as native:
        assert native.engine.ops["add_lora"] == "native"
        got = asked(native, adapters, names)
        graphs = native.engine.executor.runner.graphs
        assert (6, True) in graphs.steps and not graphs.refused
        alone = [asked(native, adapters, [None] * index + [name])[index] for index, name in enumerate(names[:3])]
    with llm(checkpoint("llama"), enforce_eager=True, **options(3)) as eager:
        assert asked(eager, adapters, names) == got
    assert furthest(got, want) < 2e-4
    assert alone == got[:3]


def test_a_slot_that_is_given_to_another_is_recorded_again(adapters):
    """One slot for three adapters: each time that one comes, steps are of it."""
    with llm(checkpoint("llama"), enforce_eager=True, **options(1)) as eager:
        want = {name: asked(eager, adapters, [name, None]) for name in adapters}
    with llm(checkpoint("llama"), **options(1)) as native:
        for name in ("all", "some", "ends", "all", "ends", "some"):
            assert asked(native, adapters, [name, None]) == want[name]
        assert (2, True) in native.engine.executor.runner.graphs.steps
    assert len({str(each) for each in want.values()}) == 3
