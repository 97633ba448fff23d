"""A model that raises: the guilty end with an error, the others have the tokens they would have had."""

import pytest
import torch
import transformers

from bestiary import LLM, PoolingParams, SamplingParams
from bestiary.api.errors import EngineError
from bestiary.engine import recovery

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [[4, 5, 6], [7, 8], [9], [10, 11, 12, 13], [14, 15]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=90,
        max_position_embeddings=64, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32", skip_tokenizer_init=True, progress=False, enforce_eager=True)


@pytest.fixture
def raising(llm, monkeypatch):
    """`raising(when, error)`: the model raises for a batch of ids for which `when` holds."""
    model = type(llm.engine.executor.runner.model)
    right = model.forward

    def arrange(when, error):
        def forward(self, input_ids, positions, **more):
            if when(input_ids.tolist()):
                raise error
            return right(self, input_ids=input_ids, positions=positions, **more)

        monkeypatch.setattr(model, "forward", forward)

    return arrange


def run(engine, prompts):
    """Token ids, or the error, of each prompt."""
    found = {str(index): [] for index in range(len(prompts))}
    for index, ids in enumerate(prompts):
        engine.add_request(str(index), ids, GREEDY)
    while engine.has_unfinished_requests:
        for update in recovery.step(engine):
            if update.token_id is not None:
                found[update.request_id].append(update.token_id)
            if update.error is not None:
                found[update.request_id] = update.error
    return list(found.values())


@pytest.mark.parametrize("guilty", [{4}, {9}, {4, 14}, {7, 9, 10}])
def test_only_the_guilty_end_with_an_error(llm, raising, guilty):
    want = run(llm.engine, PROMPTS)
    raising(lambda ids: bool(guilty & set(ids)), ValueError("in the plugin"))
    for ids, tokens, expected in zip(PROMPTS, run(llm.engine, PROMPTS), want, strict=True):
        if guilty & set(ids):
            assert tokens.startswith("MODEL_FAILED: ") and "in the plugin" in tokens
        elif not guilty & set(expected):  # a token drawn on the way may be a guilty one
            assert tokens == expected
    assert not llm.engine.has_unfinished_requests
    assert llm.engine.stats().kv_cache.used_blocks == 0


def test_a_failure_that_depends_on_the_batch_costs_nobody_anything(llm, raising):
    want = run(llm.engine, PROMPTS)
    raising(lambda ids: len(ids) > 4, MemoryError())
    assert run(llm.engine, PROMPTS) == want


def test_a_request_that_memory_does_not_suffice_for_is_told_so(llm, raising):
    raising(lambda ids: 10 in ids, RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    found = run(llm.engine, PROMPTS)
    assert found[3].startswith("OUT_OF_MEMORY")
    assert all(len(tokens) == 6 for index, tokens in enumerate(found) if index != 3 and isinstance(tokens, list))


def test_a_model_that_fails_whatever_it_is_asked_is_given_up(llm, raising):
    raising(lambda ids: True, ZeroDivisionError("for ever"))
    with pytest.raises(EngineError, match="whatever it is asked") as caught:
        run(llm.engine, PROMPTS)
    assert caught.value.error_code == "MODEL_FAILED"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not llm.engine.has_unfinished_requests


def test_vectors_of_the_others_are_right_also_where_a_prompt_was_begun(folder, raising):
    """The guilty token comes in the second part of its prompt, when parts of others have been pooled."""
    prompts = [[4] * 12, [5] * 9 + [77], [6] * 14, [7] * 3]
    options = {"runner": "pooling", "pooling_type": "MEAN", "max_num_batched_tokens": 20}
    with LLM(folder, dtype="float32", skip_tokenizer_init=True, progress=False, **options) as llm:
        want = [each.outputs.embedding for each in llm.embed(prompts, use_tqdm=False)]
        raising(lambda ids: 77 in ids, ValueError("in the plugin"))
        found = {}
        for index, ids in enumerate(prompts):
            llm.engine.add_request(str(index), ids, PoolingParams())
        while llm.engine.has_unfinished_requests:
            found |= {update.request_id: update for update in recovery.step(llm.engine)}
        assert found.pop("1").error.startswith("MODEL_FAILED: ")
        for name, update in found.items():
            vector = torch.frombuffer(bytearray(update.pooled), dtype=torch.float32)
            torch.testing.assert_close(vector, torch.tensor(want[int(name)]), atol=1e-6, rtol=0)
        assert sorted(found) == ["0", "2", "3"]
        raising(lambda ids: True, ValueError("always"))
        llm.engine.add_request("last", [4], PoolingParams())
        with pytest.raises(EngineError, match="whatever it is asked"):
            recovery.step(llm.engine)
