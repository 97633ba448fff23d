"""The product whose rows are their own, against torch, and against itself in other company."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.nn.triton import linear


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=examples(12), deadline=None)
@given(
    st.integers(0, 70), st.sampled_from([1, 33, 100]), st.sampled_from([1, 40, 130]), st.booleans(),
    st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_like_torch(rows: int, inner: int, width: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight = numbers(rows, inner).to(dtype), numbers(width, inner, seed=1).to(dtype)
    bias = numbers(width, seed=2).to(dtype) if biased else None
    wanted = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    loose = 1e-4 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(linear.linear(x, weight, bias).float(), wanted, rtol=loose, atol=loose)


def test_rows_that_lie_apart_and_more_dimensions() -> None:
    x, weight = numbers(6, 96), numbers(40, 32, seed=1)
    part = x[:, 32:64].unflatten(0, (2, 3))
    torch.testing.assert_close(linear.linear(part, weight), part @ weight.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.linear(x[:, :40], weight.t()), x[:, :40] @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_rows_bits_are_its_own(dtype: torch.dtype) -> None:
    x, weight = numbers(130, 200).to(dtype), numbers(70, 200, seed=1).to(dtype)
    together = linear.linear(x, weight)
    for row in (0, 63, 64, 129):
        assert torch.equal(linear.linear(x[row : row + 1], weight)[0], together[row])
    x[5] = torch.nan
    assert torch.equal(linear.linear(x, weight)[6], together[6])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    x, weight = (numbers(rows, 4096, seed=rows).to(dtype).cuda() for rows in (300, 14336))
    together = linear.linear(x, weight)
    torch.testing.assert_close(together, torch.nn.functional.linear(x, weight), rtol=2e-2, atol=2e-1)
    for count in (1, 7, 64, 65, 299):
        assert torch.equal(linear.linear(x[:count], weight), together[:count])
