"""Routing against its torch reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops.moe import topk_routing as reference
from bestiary.nn.triton.routing import topk_routing

KINDS = [("softmax", False), ("softmax", True), ("sigmoid", False), ("sigmoid", True)]


def check(tokens: int, experts: int, top_k: int, kind: tuple[str, bool], grouped: bool, device: str) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, experts + 1, generator=random)[:, :experts].to(device)
    bias = torch.randn(experts, generator=random).to(device) if kind[1] else None
    given: tuple[Any, ...] = (top_k, tokens % 2 == 0, kind[0], bias, *((4, 2) if grouped else (None, None)))
    (weights, ids), (wanted, wanted_ids) = topk_routing(logits, *given), reference.reference(logits, *given)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted)


@settings(max_examples=examples(25), deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([(8, 2), (12, 3), (60, 4)]), st.sampled_from(KINDS), st.booleans()
)  # fmt: skip
def test_routing(tokens: int, experts: tuple[int, int], kind: tuple[str, bool], grouped: bool) -> None:
    check(tokens, *experts, kind, grouped, "cpu")


def test_no_token() -> None:
    weights, ids = topk_routing(torch.empty(0, 8), 2, True, "softmax", None, 4, 2)
    assert weights.shape == ids.shape == (0, 2)


def test_of_equal_scores_the_lower_expert_is_first() -> None:
    assert topk_routing(torch.zeros(2, 7), 3, True)[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_ids_can_be_used_whatever_the_scores() -> None:
    _, ids = topk_routing(torch.full((1, 6), torch.nan), 4, True)
    assert ids.tolist() == [[0, 1, 2, 3]]


@pytest.mark.gpu
@pytest.mark.parametrize("grouped", [False, True])
def test_routing_on_a_gpu(grouped: bool) -> None:
    check(512, 256, 8, ("sigmoid", True), grouped, "cuda")
