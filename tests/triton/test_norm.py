"""Normalisations against their torch references."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.nn.ops import norm as reference
from bestiary.nn.triton import norm

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LOOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def close(found: Tensor, wanted: Tensor) -> None:
    """Within two roundings: sums are added in another order, and the interpreter cuts what a GPU rounds."""
    assert found.dtype is wanted.dtype
    loose = LOOSE[found.dtype]
    torch.testing.assert_close(found, wanted, rtol=loose, atol=loose)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 5), st.sampled_from([1, 7, 64, 96, 576, 1000]), DTYPES, st.booleans())
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, weighted: bool) -> None:
    x, weight = numbers((rows, width), dtype), numbers((width,), dtype, 1) if weighted else None
    close(norm.rms_norm(x, weight, 1e-6), reference.rms_norm.reference(x, weight, 1e-6))
    if weight is not None:
        close(norm.gemma_rms_norm(x, weight, 1e-6), reference.gemma_rms_norm.reference(x, weight, 1e-6))


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 3), st.sampled_from([5, 64, 576]), DTYPES)
def test_fused_add_rms_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual, weight = numbers((rows, width), dtype), numbers((rows, width), dtype, 1), numbers((width,), dtype, 2)
    before = x.clone(), residual.clone()
    found = norm.fused_add_rms_norm(x, residual, weight, 1e-5)
    for each, wanted in zip(found, reference.fused_add_rms_norm.reference(x, residual, weight, 1e-5), strict=True):
        close(each, wanted)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 4), st.sampled_from([5, 64, 576]), DTYPES, st.booleans())
def test_layer_norm(rows: int, width: int, dtype: torch.dtype, weighted: bool) -> None:
    x = numbers((rows, width), dtype)
    weight, bias = (numbers((width,), dtype, seed) if weighted else None for seed in (1, 2))
    close(norm.layer_norm(x, weight, bias, 1e-5), reference.layer_norm.reference(x, weight, bias, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_within_wider_rows_and_strips_of_wide_ones(dtype: torch.dtype) -> None:
    qkv, weight = numbers((3, 4 * 64), dtype), numbers((64,), dtype, 1)
    heads = qkv[:, :128].view(3, 2, 64)
    assert not heads.is_contiguous()
    close(norm.rms_norm(heads, weight, 1e-6), reference.rms_norm.reference(heads, weight, 1e-6))
    wide, weight = numbers((2, 9000), dtype), numbers((9000,), dtype, 1)
    close(norm.rms_norm(wide, weight, 1e-6), reference.rms_norm.reference(wide, weight, 1e-6))
    close(norm.layer_norm(wide, weight, None, 1e-6), reference.layer_norm.reference(wide, weight, None, 1e-6))
    across = numbers((64, 3), dtype).t()
    close(norm.rms_norm(across, None, 1e-6), reference.rms_norm.reference(across, None, 1e-6))


def test_what_is_no_number_stays_in_its_row() -> None:
    x = numbers((3, 64), torch.float32)
    x[1, 5] = torch.nan
    found = norm.rms_norm(x, None, 1e-6)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [128, 4096, 8000, 16384])
def test_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    loose = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 0.016}[dtype]  # rounded twice: two last places
    x, residual = (numbers((257, width), dtype, seed).cuda() for seed in range(2))
    weight = numbers((width,), dtype, 2).cuda()
    for found, wanted in zip(
        norm.fused_add_rms_norm(x, residual, weight, 1e-5),
        reference.fused_add_rms_norm.reference(x, residual, weight, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=loose, atol=1e-5)
    torch.testing.assert_close(
        norm.layer_norm(x, weight, None, 1e-5), reference.layer_norm.reference(x, weight, None, 1e-5),
        rtol=loose, atol=1e-5,
    )  # fmt: skip
