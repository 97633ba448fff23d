"""The product of one row against torch's."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.triton import vector

LOOSE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@settings(max_examples=examples(25), deadline=None)
@given(
    st.sampled_from([1, 7, 8, 65]), st.sampled_from([8, 40, 1024, 1544, 2048]), st.booleans(), st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16]), st.sampled_from([(1,), (1, 1), ()]),
)  # fmt: skip
def test_one_row(width: int, inner: int, bias: bool, part: bool, dtype: torch.dtype, before: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(width * inner)
    weight = (torch.randn(width, inner + 8 * part, generator=generator) / inner**0.5).to(dtype)[:, :inner]
    x = torch.randn(*before, 2 * inner, generator=generator).to(dtype)[..., ::2]
    added = torch.randn(width, generator=generator).to(dtype) if bias else None
    found = vector.linear(x, weight, added)
    wanted = torch.nn.functional.linear(x.float(), weight.float(), None if added is None else added.float())
    assert found.shape == wanted.shape
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), wanted, rtol=LOOSE[dtype], atol=LOOSE[dtype])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 64), torch.ones(8, 64)),
        (torch.ones(0, 64), torch.ones(8, 64)),
        (torch.ones(1, 63), torch.ones(8, 63)),
        (torch.ones(1, 64), torch.ones(64, 8).t()),
        (torch.ones(1, 64), torch.ones(0, 64)),
    ],
    ids=["two rows", "no row", "odd rows of weights", "weights by columns", "no outputs"],
)
def test_the_others_are_torchs(x: torch.Tensor, weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "_product_of_one", None)
    x, weight = x.half(), weight.half()
    assert torch.equal(vector.linear(x, weight), torch.nn.functional.linear(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "inner"), [(28672, 4096), (4096, 14336), (128, 2048), (1001, 72)])
def test_on_a_gpu(width: int, inner: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    weight = (torch.randn(width, inner, generator=generator) / inner**0.5).to("cuda", dtype)
    x = torch.randn(1, inner, generator=generator).to("cuda", dtype)
    found = vector.linear(x, weight)
    torch.testing.assert_close(found.float(), x.float() @ weight.float().t(), rtol=1e-2, atol=1e-2)
