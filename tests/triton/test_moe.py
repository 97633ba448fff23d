"""Experts and routing against their torch references."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.nn.ops import moe as reference
from bestiary.nn.triton import moe


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compared(
    tokens: int, experts: int, top_k: int, hidden: int, width: int, activation: str, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    x, w13 = numbers(tokens, hidden + 3, seed=0)[:, :hidden], numbers(experts, 2 * width, hidden, seed=1)
    w2, weights = numbers(experts, hidden, width, seed=2), numbers(tokens, top_k, seed=3).softmax(-1).to(device)
    slots = numbers(tokens, experts + 1, seed=4).argsort(-1)[:, :top_k].to(device) - 1
    given = [each.to(device, dtype) for each in (x, w13 / hidden**0.5, w2 / width**0.5)]
    return (
        moe.fused_experts(*given, weights, slots, activation),
        reference.fused_experts.reference(*given, weights, slots, activation),
    )


@settings(max_examples=examples(12), deadline=None)
@given(
    st.sampled_from([0, 1, 3, 40]), st.sampled_from([(2, 1), (5, 3)]), st.sampled_from([(16, 24), (40, 70)]),
    st.sampled_from(["silu", "gelu", "gelu_tanh"]),
)  # fmt: skip
def test_experts(tokens: int, experts: tuple[int, int], sizes: tuple[int, int], activation: str) -> None:
    found, wanted = compared(tokens, *experts, *sizes, activation, torch.float32, "cpu")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_experts_in_half_precision() -> None:
    found, wanted = compared(40, 2, 2, 40, 70, "silu", torch.float16, "cpu")
    torch.testing.assert_close(found, wanted, rtol=4e-3, atol=4e-3)


def test_exact_experts_do_not_look_at_other_tokens() -> None:
    x, w13, w2 = numbers(40, 40, seed=0), numbers(3, 140, 40, seed=1), numbers(3, 40, 70, seed=2)
    weights = numbers(40, 2, seed=3).softmax(-1)
    slots = numbers(40, 3, seed=4).argsort(-1)[:, :2]
    together = moe.fused_experts(x, w13, w2, weights, slots, "silu", exact=True)
    wanted = reference.fused_experts.reference(x, w13, w2, weights, slots, "silu")
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-3)
    for rows in (slice(0, 1), slice(3, 19), slice(39, 40)):
        alone = moe.fused_experts(x[rows], w13, w2, weights[rows], slots[rows], "silu", exact=True)
        assert torch.equal(alone, together[rows])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows of absent experts hold anything, and nobody reads them
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_experts_by_torchs_grouped_product(tokens: int, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "why_not_grouped_mm", lambda x, w2, pairs: None)
    monkeypatch.setattr(moe, "_gate_up", None)  # the other path's
    found, wanted = compared(tokens, 5, 3, 40, 72, activation, torch.float32, "cpu")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_grouped_product_is_for_many_tokens_on_new_gpus() -> None:
    x, w2 = torch.empty(1, 64, dtype=torch.bfloat16), torch.empty(8, 64, 64)
    assert moe.why_not_grouped_mm(x, w2, 8 * 64) == "for many tokens an expert"
    assert "CUDA" in str(moe.why_not_grouped_mm(x, w2, 8 * 64 + 1))


def test_no_expert_is_here() -> None:
    slots = torch.full((2, 2), -1)
    x, weights = numbers(2, 16, seed=0), torch.ones(2, 2)
    found = moe.fused_experts(x, numbers(3, 16, 16, seed=1), numbers(3, 16, 8, seed=2), weights, slots, "silu")
    assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 1024])
def test_experts_on_a_gpu(tokens: int) -> None:
    found, wanted = compared(tokens, 8, 2, 1024, 1792, "silu", torch.bfloat16, "cuda")
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_grouped_product_on_a_gpu(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some slots are −1; and the device is not waited for."""
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("for compute capability 9 and 10")
    called, own = [], moe.pairs_by_grouped_mm
    monkeypatch.setattr(moe, "pairs_by_grouped_mm", lambda *given: (called.append(1), own(*given))[1])
    found, wanted = compared(1024, 8, 2, 1024, 1792, activation, torch.bfloat16, "cuda")
    assert called
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)
    x, w13, w2 = (numbers(*shape, seed=1).cuda().bfloat16() for shape in ((512, 64), (4, 128, 64), (4, 64, 64)))
    slots = torch.zeros(512, 2, dtype=torch.int64, device="cuda")
    own(x, w13, w2, slots, activation)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert own(x, w13, w2, slots, activation).shape == (1024, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_experts_do_not_wait_for_the_gpu() -> None:
    x, w13, w2 = (numbers(*shape, seed=1).cuda().bfloat16() for shape in ((4, 64), (8, 128, 64), (8, 64, 64)))
    slots, weights = torch.zeros(4, 2, dtype=torch.int64, device="cuda"), torch.ones(4, 2, device="cuda")
    moe.fused_experts(x, w13, w2, weights, slots, "silu")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = moe.fused_experts(x, w13, w2, weights, slots, "silu")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.shape == x.shape
