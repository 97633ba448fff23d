"""The fixed-tile product against torch's, and a row's bits alone and in company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import linear as reference
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.triton import linear
from bestiary.nn.triton.offers import LINEAR


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(0, 70),
    width=st.integers(1, 70),
    depth=st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    has_bias=st.booleans(),
)
def test_equals_torch(rows: int, width: int, depth: int, dtype: torch.dtype, has_bias: bool) -> None:
    x, weight = _random(rows, depth).to(dtype), _random(width, depth, seed=1).to(dtype)
    bias = _random(width, seed=2).to(dtype) if has_bias else None
    wanted = reference.linear.reference(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(linear.linear(x, weight, bias).double(), wanted, atol=1e-2, rtol=2e-3)


def test_strides_and_leading_dimensions() -> None:
    x, weight = _random(40, 6).t().view(2, 3, 40)[:, :, ::2], _random(20, 9).t()
    torch.testing.assert_close(linear.linear(x, weight), x @ weight.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_rows_bits_do_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x, weight = _random(67, 100).to(dtype), _random(66, 100, seed=1).to(dtype)
    together = linear.linear(x, weight)
    for row in (0, 5, 66):
        assert torch.equal(linear.linear(x[row : row + 1], weight)[0], together[row])


def test_only_deterministic_targets_choose_it() -> None:
    offered = {"linear/triton": LINEAR, "linear/fixed_tile": reference.FIXED_TILE}
    assert choose_ops(Target("cuda", torch.bfloat16, True), {}, offered).names["linear"] == "triton"
    assert choose_ops(Target("cuda", torch.bfloat16), {}, offered).names["linear"] == "reference"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    x, weight = _random(300, 4096).to("cuda", dtype), _random(6144, 4096, seed=1).to("cuda", dtype)
    together = linear.linear(x, weight)
    torch.testing.assert_close(together, x @ weight.t(), atol=0.5, rtol=2e-2)
    for rows in (1, 16, 129):
        assert torch.equal(linear.linear(x[:rows], weight), together[:rows])
