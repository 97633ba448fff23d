"""int8 activations times int8 weights against the torch reference."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import quant as reference
from bestiary.nn.triton import int8

KINDS = ["token", "range", "stored", "stored with a zero"]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_activations(kind: str, device: str = "cpu") -> tuple[torch.Tensor | None, torch.Tensor | None, bool]:
    """Scale, zero, and whether they are symmetric."""
    if not kind.startswith("stored"):
        return None, None, kind == "token"
    zero = torch.tensor(-7.0, device=device) if "zero" in kind else None
    return torch.tensor(0.02, device=device), zero, zero is None


def weights(width: int, depth: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(2)
    return torch.randint(-128, 128, (width, depth + 3), generator=make).to(torch.int8)[:, :depth]


@settings(max_examples=examples(20), deadline=None)
@given(
    st.sampled_from([0, 1, 16, 17, 40]), st.integers(1, 140), st.integers(1, 300), st.sampled_from(KINDS),
    st.booleans(), st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_product(rows: int, width: int, depth: int, kind: str, has_bias: bool, dtype: torch.dtype) -> None:
    x, scale = numbers(rows, depth + 5)[:, :depth].to(dtype), numbers(width, seed=1).abs() * 0.01
    bias = numbers(width, seed=3).to(dtype) if has_bias else None
    given_ = x, weights(width, depth), scale, *of_activations(kind), bias
    if not rows:
        assert int8.linear_int8_int8(*given_).shape == (0, width)
        return
    wanted = reference.linear_int8_int8.reference(*given_)
    loose = 1e-5 if dtype is torch.float32 else 2e-3
    torch.testing.assert_close(int8.linear_int8_int8(*given_), wanted, rtol=loose, atol=loose * 10)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_references(kind: str) -> None:
    """With halves between two codes, numbers beyond all of them, a row of zeros and one of one sign."""
    x = torch.stack((numbers(200) * 3, torch.zeros(200), numbers(200).abs() + 1, torch.arange(200) / 2.0 - 50))
    scale, zero, symmetric = of_activations(kind)
    codes, steps, zeros = int8.rounded_to_int8(x, scale, zero, symmetric)
    wanted, wanted_steps, wanted_zeros = reference.int8_codes(x, scale, zero, symmetric)
    assert torch.equal(codes.float(), wanted)
    assert torch.equal(steps, wanted_steps.expand(4, 1).flatten())
    if wanted_zeros is None:
        assert zeros is None
    else:
        assert zeros is not None
        assert torch.equal(zeros.float(), wanted_zeros.expand(4, 1).flatten())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_that_has_nan_is_nan_and_no_other() -> None:
    x = numbers(3, 40)
    x[1, 7] = torch.nan
    out = int8.linear_int8_int8(x, weights(9, 40), torch.ones(9))
    assert out.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["token", "range"])
def test_a_row_has_its_own_bits(kind: str) -> None:
    x, weight, scale = numbers(40, 300), weights(33, 300), torch.full((33,), 0.003)
    together = int8.linear_int8_int8(x, weight, scale, *of_activations(kind))
    for row in (0, 17, 39):
        alone = int8.linear_int8_int8(x[row : row + 1], weight, scale, *of_activations(kind))
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_on_a_gpu(rows: int, kind: str) -> None:
    x, weight, scale = numbers(rows, 4096).bfloat16().cuda(), weights(1000, 4096).cuda(), torch.full((1000,), 0.003)
    given_ = x, weight, scale.cuda(), *of_activations(kind, "cuda")
    wanted = reference.linear_int8_int8.reference(*given_)
    found = int8.linear_int8_int8(*given_)
    assert float((found.float() - wanted.float()).norm() / wanted.float().norm()) < 1e-2
