"""Sampling: processors, truncation, distributions, and independence from the batch."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.sampling import SamplingParams
from bestiary.engine import device_draws, device_sampler
from bestiary.engine.device_sampler import sample_there
from bestiary.engine.logprobs import logprobs_of
from bestiary.engine.plan import NewRequest
from bestiary.engine.request_state import RequestState
from bestiary.engine.sampler import _candidates, sample, uniform

VOCAB = 50


def state(seed=0, prompt=(1, 2, 3), outputs=(), eos=(0,), **params):
    made = RequestState(NewRequest("r", tuple(prompt), SamplingParams(**params), seed, eos))
    for token in outputs:
        made.append(token)
    return made


def row(seed=0):
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def one(logits, request):
    return sample(logits.unsqueeze(0), [request])[0]


def test_greedy_is_the_largest_logit():
    logits = row()
    assert one(logits, state(temperature=0)).token_id == int(logits.argmax())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_row_harms_no_other(bad):
    logits = torch.stack([row(1), row(2), row(3)])
    logits[1, 4] = bad
    drawn = sample(logits, [state(temperature=0), state(temperature=0.5), state(temperature=0)])
    assert drawn[1].error == "numerical"
    assert [drawn[0].token_id, drawn[2].token_id] == [int(row(1).argmax()), int(row(3).argmax())]
    assert sample(torch.full((1, VOCAB), -math.inf), [state()])[0].error == "numerical"


def test_processors_ban_and_bias():
    logits = row()
    best = int(logits.argmax())
    second = int(logits.topk(2).indices[1])
    assert one(logits, state(temperature=0, bad_token_ids=[best])).token_id == second
    assert one(logits, state(temperature=0, allowed_token_ids=[7])).token_id == 7
    assert one(logits, state(temperature=0, logit_bias={9: 100.0})).token_id == 9
    request = state(temperature=0, min_tokens=2, max_tokens=9, eos=(best,), stop_token_ids=[second])
    third = int(logits.topk(3).indices[2])
    assert one(logits, request).token_id == third
    request.append(third)
    request.append(third)
    assert one(logits, request).token_id == best
    assert one(logits, state(allowed_token_ids=[5], logit_bias={5: -100.0})).token_id == 5


def test_penalties_follow_their_formulas():
    logits = torch.zeros(VOCAB)
    logits[:4] = torch.tensor([2.0, 1.9, -1.0, 1.0])
    assert one(logits, state(temperature=0, prompt=[0], repetition_penalty=1.5)).token_id == 1
    assert one(logits, state(temperature=0, outputs=[0], presence_penalty=0.5)).token_id == 1
    assert one(logits, state(temperature=0, prompt=[0], presence_penalty=0.5)).token_id == 0
    request = state(temperature=0, outputs=[0, 0, 1], frequency_penalty=0.6)
    assert one(logits, request).token_id == 1


def kept_by_definition(logits, top_k, top_p, min_p):
    """min-p, then top-k, then top-p on what is left, in float64, the slow way."""
    probs = torch.softmax(logits.double(), -1)
    order = sorted(range(len(probs)), key=lambda i: -float(logits[i]))
    kept = [i for i in order if float(probs[i]) >= min_p * float(probs[order[0]])]
    kept = kept[: top_k or len(kept)]
    if top_p < 1.0:
        total, before, out = sum(float(probs[i]) for i in kept), 0.0, []
        for i in kept:
            if before / total >= top_p and out:
                break
            out.append(i)
            before += float(probs[i])
        kept = out
    return kept


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([40, 3000]),
    top_k=st.sampled_from([0, 1, 5, 30]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.001, 0.2, 1.0]),
    scale=st.sampled_from([0.01, 1.0, 6.0]),
)
def test_truncation_equals_its_definition(seed, width, top_k, top_p, min_p, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(width, generator=generator, dtype=torch.double) * scale  # no two alike
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return
    _, ids = _candidates(logits, top_k, top_p, min_p)
    assert ids.tolist() == kept_by_definition(logits, top_k, top_p, min_p)


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.7}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02}],
)
@pytest.mark.parametrize("draws", [3000, pytest.param(50_000, marks=pytest.mark.full)])
def test_draws_follow_the_distribution(params, draws):
    logits = row(5)
    temperature = params.get("temperature", 1.0)
    kept = kept_by_definition(
        logits / temperature, params.get("top_k", 0), params.get("top_p", 1.0), params.get("min_p", 0.0)
    )
    mask = torch.full((VOCAB,), -math.inf)
    mask[kept] = 0.0
    probs = torch.softmax(logits.double() / temperature + mask, -1)
    counts = torch.zeros(VOCAB, dtype=torch.double)
    requests = [state(seed=seed, **params) for seed in range(500)]
    for _ in range(0, draws, 500):
        for token in sample(logits.expand(500, -1), requests):
            counts[token.token_id] += 1
        for request in requests:
            request.tokens.append(0)
    draws = int(counts.sum())
    assert counts[probs == 0].sum() == 0
    likely = probs * draws >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([probs[likely], probs[~likely].sum()[None]]) * draws
    usable = expected > 0
    statistic = float(((observed - expected)[usable] ** 2 / expected[usable]).sum())
    freedom = int(usable.sum()) - 1
    bound = freedom + 4.5 * math.sqrt(2 * freedom) + 10  # far beyond the 0.999 quantile of chi-square
    assert statistic < bound


def test_a_draw_depends_on_seed_and_position_alone():
    logits = torch.stack([row(i) for i in range(6)])
    requests = [state(seed=i, prompt=range(1, i + 2), temperature=0.9, top_p=0.95) for i in range(6)]
    together = [token.token_id for token in sample(logits, requests)]
    order = [4, 2, 0, 5, 1, 3]
    shuffled = [token.token_id for token in sample(logits[order], [requests[i] for i in order])]
    assert [together[i] for i in order] == shuffled
    assert uniform(1, 2) != uniform(2, 1)
    assert 0.0 <= uniform(2**63 - 1, 10**9) < 1.0


def test_more_logprobs_than_tokens_are_all_of_them():
    assert len(logprobs_of([(torch.randn(5), 2, 20)])[0]) == 5


def test_logprobs_are_those_of_the_raw_distribution():
    logits = row(3)
    want = torch.log_softmax(logits, -1)
    drawn = one(logits, state(temperature=0.3, logprobs=3, bad_token_ids=[int(logits.argmax())]))
    assert math.isclose(drawn.logprobs[drawn.token_id].logprob, float(want[drawn.token_id]), abs_tol=1e-6)
    ranked = want.argsort(descending=True).tolist()
    assert [drawn.logprobs[token].rank for token in ranked[:3]] == [1, 2, 3]
    assert next(iter(drawn.logprobs)) == drawn.token_id
    assert drawn.logprobs[drawn.token_id].rank == ranked.index(drawn.token_id) + 1
    assert list(logprobs_of([(logits, 8, 0)])[0]) == [8]


@pytest.fixture
def waits(monkeypatch):
    """How often the host has looked at numbers, or sent some, where the logits are on a GPU."""
    counted = []

    def counting(name):
        plain = getattr(torch.Tensor, name)

        def look(self, *args):
            counted.append(name)
            return plain(self, *args)

        return look

    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    plain = device_draws.send
    for module in (device_draws, device_sampler):
        monkeypatch.setattr(module, "send", lambda *given: (counted.append("send"), plain(*given))[1])
    return counted


def test_a_step_waits_for_the_device_once(waits):
    logits = torch.stack([row(at) for at in range(4)])
    requests = [state(0, temperature=0), *(state(at, temperature=0.8, top_k=5) for at in (1, 2, 3))]
    waits.clear()
    sample_there(logits, requests)
    assert waits == ["send", "send", "tolist"]  # what is sent, is not waited for
    for request in requests:
        request.sampling = replace(request.sampling, logprobs=2)
    waits.clear()
    sample_there(logits, requests)
    assert waits == ["send", "send", "send", "tolist", "tolist"]  # the second look is at what is on the host
    waits.clear()
    logprobs_of([(each, 3, 2) for each in logits])
    assert waits == ["tolist"]


@pytest.mark.gpu
def test_sending_does_not_wait_for_the_gpu():
    logits = torch.stack([row(at) for at in range(4)]).cuda()
    requests = [state(at, temperature=0.8, top_k=5) for at in range(4)]
    device_draws.draw_together(logits, requests, [0, 2, 3])
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = device_draws.draw_together(logits, requests, [0, 2, 3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.token_id for each in sample_there(logits, requests)][2:] == drawn.tolist()[1:]


def test_rows_drawn_from_everything_are_drawn_as_others_are():
    """Alone they take the way that reads logits once; beside a truncated row the other one, to the same tokens."""
    logits = torch.stack([row(at) for at in range(5)])
    logits[2, 1] = math.nan
    requests = [state(at, temperature=0.8) for at in range(4)] + [state(4, temperature=0.8, top_k=5)]
    alone = device_draws.draw_together(logits, requests, [0, 1, 2, 3])
    beside = device_draws.draw_together(logits, requests, [0, 1, 2, 3, 4])
    assert alone.tolist() == beside.tolist()[:4]
    assert alone[2] == -1


def test_rows_that_take_the_best_are_told_no_numbers(waits):
    """Beside one that is drawn they are drawn as that is, to the same tokens."""
    logits = torch.stack([row(at) for at in range(5)])
    logits[1, 7], logits[2] = math.nan, -math.inf
    requests = [state(at, temperature=0) for at in range(4)] + [state(4, temperature=0.8, top_k=5)]
    alone = device_draws.draw_together(logits[:4], requests, range(4))
    some = device_draws.draw_together(logits, requests, [0, 3])
    assert waits == ["send"]
    assert alone.tolist() == device_draws.draw_together(logits, requests, range(5)).tolist()[:4]
    assert alone.tolist() == [int(row(0).argmax()), -1, -1, int(row(3).argmax())]
    assert some.tolist() == [alone[0], alone[3]]


def test_rows_drawn_where_the_logits_are():
    """As on a GPU: plain rows together, by seed and position alone; greedy and reshaped ones as ever."""
    requests = [
        state(7, temperature=0.8, top_k=5),
        state(0, temperature=0),
        state(9, temperature=1.0, logit_bias={4: 100.0}),
        state(7, temperature=0.8, top_k=5),
        state(8, temperature=1.5, top_p=0.5, logprobs=2),
    ]
    logits = torch.stack([row(1), row(2), row(3), row(1), row(4)])
    here = [each.token_id for each in sample(logits, requests)]
    there = sample_there(logits, requests)
    ids = [each.token_id for each in there]
    assert ids[1:3] == here[1:3] == [int(row(2).argmax()), 4]
    assert ids[0] == ids[3]
    assert ids[0] in row(1).topk(5).indices.tolist()
    assert len(there[4].logprobs) >= 2 and ids[4] in there[4].logprobs
    for at, request in enumerate(requests):
        assert sample_there(logits[at : at + 1], [request])[0].token_id == ids[at]
    logits[0, 3] = math.nan
    assert [each.error for each in sample_there(logits, requests)] == ["numerical", None, None, None, None]
