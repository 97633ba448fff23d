"""The order of pairs by expert, and their tiles, against torch's stable sort."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bestiary.nn.triton.sorting import Tiles, sort_by_expert, tiles_by_expert


@settings(max_examples=examples(30), deadline=None)
@given(
    st.integers(1, 300), st.sampled_from([1, 2, 8]), st.sampled_from([1, 5, 32, 200]), st.sampled_from([1, 16, 64]),
    st.integers(0, 2**16), st.sampled_from([-1, 0]),
)  # fmt: skip
@example(1300, 2, 7, 16, 0, -1)
def test_pairs_by_expert(tokens: int, top_k: int, count: int, rows: int, seed: int, lowest: int) -> None:
    slots = torch.randint(lowest, count, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    found = Tiles(*sort_by_expert(slots, count, rows))
    held, order = torch.where(slots < 0, count, slots).flatten().sort(stable=True)
    assert torch.equal(found.order, order)
    assert torch.equal(found.starts, torch.searchsorted(held, torch.arange(count + 1)))
    wanted = [
        (expert, int(first))
        for expert in range(count)
        for first in range(int(found.starts[expert]), int(found.starts[expert + 1]), rows)
    ]
    tiles = list(zip(found.experts.tolist(), found.firsts.tolist(), strict=True))
    assert tiles[: len(wanted)] == wanted
    assert all(expert == count for expert, _ in tiles[len(wanted) :])


def test_nobody_is_here() -> None:
    found = Tiles(*sort_by_expert(torch.full((3, 2), -1), 4, 16))
    assert found.order.tolist() == list(range(6))
    assert found.starts.tolist() == [0] * 5
    assert set(found.experts.tolist()) == {4}


def test_whose_places_are_whose() -> None:
    slots = torch.tensor([[2, 0], [-1, 2], [1, 0]])
    found = tiles_by_expert(slots, 3, 16)
    assert found.pairs == 6
    assert found.expert_of_places(3).tolist()[:5] == [0, 0, 1, 2, 2]
    assert found.token_of_places(2).tolist() == [0, 2, 2, 0, 1, 1]
    alone = tiles_by_expert(slots[1:2], 3, 16)
    assert alone.pairs == 2
    assert alone.expert_of_places(3).tolist()[1] == 2
    assert alone.token_of_places(2).tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [2, 64, 8192])
def test_on_a_gpu(tokens: int) -> None:
    slots = torch.randint(-1, 128, (tokens, 8), generator=torch.Generator().manual_seed(tokens))
    found, wanted = (
        sort_by_expert(slots.cuda(), 128, 16),
        torch.where(slots < 0, 128, slots).flatten().sort(stable=True),
    )
    assert torch.equal(found[0].cpu(), wanted.indices)
    assert torch.equal(found[1].cpu(), torch.searchsorted(wanted.values, torch.arange(129)))
    experts = found[2].cpu()
    assert torch.equal(experts, experts.sort().values)
