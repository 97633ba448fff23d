"""Whole models whose steps are planned ahead: the same tokens, also where tokens stay on the device meanwhile."""

import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.errors import ModelFailed
from bestiary.engine.runner import ModelRunner

PROMPTS = [[1, 5, 9], [7] * 20, [2, 3], list(range(3, 40))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("ahead")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=211, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def answers(checkpoint, params, *, defers=False, **options):
    llm = LLM(checkpoint, dtype="float32", kernels="torch", skip_tokenizer_init=True, progress=False, **options)
    llm.engine.executor.runner.defers = defers
    try:
        made = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
        return [(each.outputs[0].token_ids, explained(each.outputs[0].logprobs)) for each in made]
    finally:
        llm.close()


def explained(logprobs):
    """Tokens' log-probabilities, with ranks; close is enough, since a CPU's differ with the batch."""
    close = {"abs": 1e-4}
    return [
        {token: (pytest.approx(each.logprob, **close), each.rank) for token, each in step.items()}
        for step in logprobs or ()
    ]


GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
DRAWN = [
    SamplingParams(temperature=0.9, top_k=20, seed=number, max_tokens=4 * number + 3, stop_token_ids=[17, 99])
    for number in range(4)
]
ASKED = [
    {"repetition_penalty": 1.4},
    {"presence_penalty": 1.1, "frequency_penalty": 0.3, "logprobs": 3},
    {"min_tokens": 9, "stop_token_ids": list(range(0, 211, 2)), "ignore_eos": False},
    {"logit_bias": {5: 9.0}, "bad_token_ids": [7, 8], "logprobs": 0},
]
EDITED = [SamplingParams(temperature=0.0, max_tokens=20, **{"ignore_eos": True, **each}) for each in ASKED]
EDITED_DRAWS = [
    SamplingParams(temperature=1.1, top_p=0.9, seed=at, max_tokens=12 + at, **each) for at, each in enumerate(ASKED)
]
KINDS = {"greedy": GREEDY, "drawn": DRAWN, "edited": EDITED, "edited draws": EDITED_DRAWS}


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
def test_the_same_tokens(checkpoint, params):
    assert answers(checkpoint, params, async_scheduling=True) == answers(checkpoint, params)


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
def test_the_same_tokens_where_they_stay_on_the_device(checkpoint, params):
    ahead = answers(checkpoint, params, defers=True, async_scheduling=True)
    waits = {"max_num_seqs": 1}  # each draw is a function of its request alone
    assert ahead == answers(checkpoint, params, defers=True, async_scheduling=True, **waits)
    if params in (GREEDY, EDITED):
        assert ahead == answers(checkpoint, params)


def test_what_a_row_that_cannot_be_drawn_leaves_is_no_token(checkpoint):
    """The step after it has been begun upon it, and looks it up."""
    llm = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, async_scheduling=True)
    runner = llm.engine.executor.runner
    runner.defers, compute = True, runner.made_of
    steps = []

    def broken(batch, plan, **options):
        logits, *best = compute(batch, plan, **options) if runner.graphs else (compute(batch, plan, **options),)
        steps.append(plan)
        if len(steps) == 3:
            logits[1] = torch.nan
            best = logits.max(dim=-1)
        return logits, *best

    runner.made_of = broken
    made = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], DRAWN, use_tqdm=False)
    llm.close()
    found = [(each.outputs[0].finish_reason, each.outputs[0].stop_reason) for each in made]
    assert found[1] == ("error", "numerical")
    assert {reason for at, (reason, _) in enumerate(found) if at != 1} <= {"length", "stop"}
    places = [{item.request_id: item.start for item in plan.items}["1"] for plan in steps[2:4]]
    assert places[1] == places[0] + 1


def test_a_step_that_fails_after_its_draw_is_forgotten(checkpoint, monkeypatch):
    """What was launched is collected in order, and nothing of what was not."""
    wanted = answers(checkpoint, GREEDY, async_scheduling=True)
    llm = LLM(
        checkpoint, dtype="float32", kernels="torch", skip_tokenizer_init=True, progress=False, async_scheduling=True
    )
    record, failed = ModelRunner.record, []

    def failing(self, batch, result):
        if result.step == 4 and not failed:
            failed.append(result.step)
            raise ZeroDivisionError("after the draw")
        record(self, batch, result)

    monkeypatch.setattr(ModelRunner, "record", failing)
    for at, ids in enumerate(PROMPTS):
        llm.engine.add_request(str(at), ids, GREEDY)
    tokens = {str(at): [] for at in range(len(PROMPTS))}
    while llm.engine.has_unfinished_requests and len(failed) < 3:
        try:
            for update in llm.engine.step():
                tokens[update.request_id].append(update.token_id)
        except ModelFailed:
            failed.append("told")
    llm.close()
    assert failed == [4, "told"]
    assert [*tokens.values()] == [ids for ids, _ in wanted]


def test_ranks_that_divide_a_model_do_not_plan_ahead(checkpoint):
    with pytest.raises(Exception, match="not planned ahead where ranks divide a model"):
        LLM(checkpoint, async_scheduling=True, tensor_parallel_size=2, skip_tokenizer_init=True, progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [False, True], ids=["recorded", "op by op"])
def test_on_a_gpu(checkpoint, eager):
    options = {"device": "cuda", "kernels": "auto", "enforce_eager": eager}
    found = []
    for ahead in (False, True):
        llm = LLM(
            checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, async_scheduling=ahead, **options
        )
        each = [*DRAWN, *EDITED_DRAWS]
        made = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS * 2], each, use_tqdm=False)
        found.append([(one.outputs[0].token_ids, explained(one.outputs[0].logprobs)) for one in made])
        llm.close()
    assert found[0] == found[1]
