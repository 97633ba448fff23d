"""Writes to the paged cache against the torch reference."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import attention as reference
from bestiary.nn.triton import cache

KINDS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float8_e4m3fn),
    (torch.float32, torch.float8_e5m2),
]


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 6), st.integers(1, 3), st.sampled_from([8, 80, 64]), st.sampled_from(KINDS), st.integers(0, 99))
def test_write(tokens: int, heads: int, size: int, kinds: tuple[torch.dtype, torch.dtype], seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, 3 * heads * size, generator=make).mul_(300)
    rows = rows.to(kinds[1]).to(
        kinds[0]
    )  # numbers that need no rounding: the interpreter rounds fp8 otherwise than a GPU
    key, value = (rows[:, at * heads * size : (at + 1) * heads * size].view(tokens, heads, size) for at in (1, 2))
    slots = torch.randperm(4 * 4, generator=make)[:tokens]
    found, wanted = (torch.zeros(4, 4, 2, heads, size, dtype=kinds[1]) for _ in range(2))
    cache.write_kv_cache(found, key, value, slots)
    reference.write_kv_cache.reference(wanted, key, value, slots)
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_is_too_large_becomes_the_largest(dtype: torch.dtype) -> None:
    row = torch.tensor([1e6, -1e6, 0.0, 448.0, 1.0, -2.0, 0.5, 3e38]).view(1, 1, 8)
    found, wanted = (torch.zeros(1, 4, 2, 1, 8, dtype=dtype) for _ in range(2))
    cache.write_kv_cache(found, row, -row, torch.tensor([2]))
    reference.write_kv_cache.reference(wanted, row, -row, torch.tensor([2]))
    assert torch.equal(found.float(), wanted.float())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_is_no_number_becomes_nan(dtype: torch.dtype) -> None:
    row = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0] * 2, device="cuda").view(1, 1, 8)
    found, wanted = (torch.zeros(1, 4, 2, 1, 8, dtype=dtype, device="cuda") for _ in range(2))
    cache.write_kv_cache(found, row, -row, torch.tensor([2], device="cuda"))
    reference.write_kv_cache.reference(wanted, row, -row, torch.tensor([2], device="cuda"))
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    key, value = torch.randn(2, 1000, 8, 128, device="cuda", dtype=torch.bfloat16)
    slots = torch.randperm(64 * 16, device="cuda")[:1000]
    found, wanted = (torch.zeros(64, 16, 2, 8, 128, dtype=dtype, device="cuda") for _ in range(2))
    cache.write_kv_cache(found, key, value, slots)
    reference.write_kv_cache.reference(wanted, key, value, slots)
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
