"""Rows that requests and grammars change where the logits are: the same numbers as one by one on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.sampling import SamplingParams
from bestiary.engine import transfer
from bestiary.engine.device_edits import edited
from bestiary.engine.device_sampler import sample_there
from bestiary.engine.plan import NewRequest, SampledToken
from bestiary.engine.request_state import RequestState
from bestiary.engine.sampler import _as_allowed, _reshaped, sample

VOCAB = 53
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6, unique=True)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "bad_token_ids": IDS, "allowed_token_ids": IDS, "min_tokens": st.integers(0, 4), "ignore_eos": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=4),
        "repetition_penalty": st.sampled_from([0.5, 1.3]), "presence_penalty": st.sampled_from([-0.7, 1.1]),
        "frequency_penalty": st.sampled_from([-0.3, 0.9]), "stop_token_ids": IDS,
    },
).filter(lambda made: set(made.get("allowed_token_ids", [0, 1])) - set(made.get("bad_token_ids", [])))  # fmt: skip
GRAMMARS = st.none() | st.lists(st.booleans(), min_size=VOCAB, max_size=VOCAB)


def state(outputs: list[int] = [], seed: int = 0, **params: Any) -> RequestState:  # noqa: B006
    sampling = SamplingParams(max_tokens=20, **{"temperature": 0.0, **params})
    made = RequestState(NewRequest("r", (1, 2, 3, 2), sampling, seed, (0, 9)))
    for token in outputs:
        made.append(token)
    return made


def bits(allowed: list[bool]) -> bytes:
    return np.packbits(allowed, bitorder="little").tobytes()


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=150)
@given(st.lists(st.tuples(PARAMS, st.lists(st.integers(0, VOCAB - 1), max_size=5), GRAMMARS), min_size=1, max_size=4))
def test_the_same_numbers_as_one_by_one(asked: list[Any]) -> None:
    states = [state(outputs, **params) for params, outputs, _ in asked]
    grammars = [None if grammar is None else bits(grammar) for *_, grammar in asked]
    x, rows = logits(len(states) + 1), [*range(1, len(states) + 1)]
    found = edited(x, [state(), *states], rows, grammars)
    for row, each, grammar, made in zip(x[1:], states, grammars, found, strict=True):
        assert torch.equal(made, _reshaped(_as_allowed(row, each, grammar), each))
    assert torch.equal(x, logits(len(states) + 1))


REQUESTS = [
    ({"logit_bias": {4: 50.0}}, None), ({}, [at in (7, 8) for at in range(VOCAB)]),
    ({"allowed_token_ids": [5, 6]}, [at > 5 for at in range(VOCAB)]), ({"repetition_penalty": 1.4}, None), ({}, None),
    ({"bad_token_ids": [7]}, [at == 7 for at in range(VOCAB)]), ({}, [at in (0, 9) for at in range(VOCAB)]),
    ({"ignore_eos": True}, [at in (0, 9) for at in range(VOCAB)]),
]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_and_ends_are_the_host_s(temperature: float) -> None:
    """Drawn ones are drawn by other numbers, but from the same; what is drawn alone is drawn in a batch."""
    states = [state([11, 12], temperature=temperature, seed=at, **params) for at, (params, _) in enumerate(REQUESTS)]
    grammars = [None if grammar is None else bits(grammar) for _, grammar in REQUESTS]
    other = SampledToken(-1, instead="end")
    x = logits(len(states) + 2)
    x[-1, 3] = math.nan
    all_states, all_grammars = [*states, state(), state()], [*grammars, other, None]
    here = sample(x, all_states, all_grammars)
    there = sample_there(x, all_states, all_grammars)
    assert [(each.error, each.instead, each.token_id < 0) for each in here] == [
        (each.error, each.instead, each.token_id < 0) for each in there
    ]
    assert [each.token_id for each in there][:3] == [4, there[1].token_id, 6]
    assert (
        there[1].token_id in (7, 8) and there[5].error and there[7].instead == "end" and there[9].error == "numerical"
    )
    if temperature == 0.0:
        assert here == there
    for at, (each, grammar) in enumerate(zip(states, grammars, strict=True)):
        assert sample_there(x[at : at + 1], [each], [grammar]) == [there[at]]


def test_numbers_go_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = transfer.send
    monkeypatch.setattr(transfer, "send", lambda array, device: (sent.append(array.nbytes), send(array, device))[1])
    monkeypatch.setattr(
        "bestiary.engine.device_edits.send_together", lambda arrays, device: transfer.in_one_copy(arrays, device)
    )
    states = [state([11, 12], **params) for params, _ in REQUESTS]
    grammars = [None if grammar is None else bits(grammar) for _, grammar in REQUESTS]
    found = edited(logits(len(states)), states, range(len(states)), grammars)
    assert len(sent) == 1
    assert found[0, 4] == logits(len(states))[0, 4] + 50


@pytest.mark.gpu
def test_nobody_waits_on_a_gpu() -> None:
    states = [state([11, 12], **params) for params, _ in REQUESTS]
    grammars = [None if grammar is None else bits(grammar) for _, grammar in REQUESTS]
    x = logits(len(states)).cuda()
    wanted = edited(x.cpu(), states, range(len(states)), grammars)
    edited(x, states, range(len(states)), grammars)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = edited(x, states, range(len(states)), grammars)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), wanted)
