"""Log-probabilities of all rows together: those that each row has by itself, whatever is beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.engine import logprobs
from bestiary.engine.logprobs import likeliest, logprobs_of, prompt_logprobs, read_likeliest


def logits(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 80), st.integers(0, 99), st.data())
def test_those_of_each_row_by_itself(rows: int, width: int, count: int, seed: int, data: st.DataObject) -> None:
    x = logits(rows, width, seed)
    x[:, 1 :: data.draw(st.integers(2, 9))] = -math.inf if data.draw(st.booleans()) else 0.0
    tokens = [int(each) for each in x.argmax(dim=1)]
    together = data.draw(st.integers(1, 200))
    before, logprobs._TOGETHER = logprobs._TOGETHER, together
    try:
        found = likeliest(x, torch.tensor(tokens), count)
    finally:
        logprobs._TOGETHER = before
    assert torch.equal(
        found, torch.cat([likeliest(row[None], torch.tensor([t]), count) for row, t in zip(x, tokens, strict=True)])
    )
    wanted = logprobs_of([(row, token, count) for row, token in zip(x, tokens, strict=True)])
    for token, row, each in zip(tokens, found.tolist(), wanted, strict=True):
        read = read_likeliest(token, row, count)
        assert [(one.logprob, one.rank) for one in read.values()] == [
            (pytest.approx(one.logprob, abs=1e-5), one.rank) for one in each.values()
        ]
        assert read[token].rank == 1


def test_of_equal_ones_the_lower_ids() -> None:
    x = torch.tensor([[1.0, -0.0, 2.0, 0.0, 1.0, 2.0, -math.inf, -1.0, -1.0]])
    row = likeliest(x, torch.tensor([4]), 9)[0].tolist()
    assert row[2 + 9 :] == [2, 5, 0, 4, 1, 3, 7, 8, 6]
    assert [*read_likeliest(4, row, 3)] == [4, 2, 5, 0]
    assert read_likeliest(4, row, 3)[4].rank == 3


def test_each_asks_for_as_many_as_it_wants() -> None:
    row = likeliest(logits(1, 20), torch.tensor([3]), 8)[0].tolist()
    assert len(read_likeliest(3, row, 2)) in (2, 3)
    assert list(read_likeliest(3, row, 0)) == [3]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1000, 50257])
def test_on_a_gpu(width: int) -> None:
    x, tokens = logits(5, width), [3, 1, 4, 1, 5]
    found = prompt_logprobs(x.cuda(), tokens, 4)
    for one, other in zip(found, prompt_logprobs(x, tokens, 4), strict=True):
        assert [(token, each.rank) for token, each in one.items()] == [
            (token, each.rank) for token, each in other.items()
        ]
        assert [each.logprob for each in one.values()] == pytest.approx([each.logprob for each in other.values()])
    there, zeros = x.cuda(), torch.zeros(5, dtype=torch.int64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        together = likeliest(there, zeros, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat([likeliest(there[at : at + 1], zeros[:1], 4) for at in range(5)]), together)
    assert prompt_logprobs(x[:0].cuda(), [], 4) == []
