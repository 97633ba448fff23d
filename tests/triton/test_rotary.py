"""Rotary embedding against the torch reference."""

from __future__ import annotations

import emulated
import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import heads
from bestiary.nn.ops import rotary as reference
from bestiary.nn.ops.heads import QKNorm
from bestiary.nn.triton import rotary
from bestiary.nn.triton.angles import rotary_angles

DTYPES = st.sampled_from(
    [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16),
     (torch.bfloat16, torch.float32)]
)  # fmt: skip

LOOSE = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of some roundings, which the interpreter cuts where a GPU rounds."""


def angles(tokens: int, rotary_dim: int, neox: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    turned = torch.arange(50)[:, None] * inverse
    table = torch.cat((turned.cos(), turned.sin()), -1).to(dtype)
    return reference.rotary_angles.reference(table, torch.arange(tokens) * 3 % 50, neox, dtype)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 40), st.sampled_from([2, 24, 64, 256]), st.booleans(), st.sampled_from([*LOOSE]))
def test_angles(tokens: int, rotary_dim: int, neox: bool, dtype: torch.dtype) -> None:
    table = torch.randn(50, rotary_dim, generator=torch.Generator().manual_seed(tokens))
    positions = torch.arange(2 * tokens)[::2] * 3 % 50
    found = rotary_angles(table, positions, neox, dtype)
    wanted = reference.rotary_angles.reference(table, positions, neox, dtype)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01 if dtype is torch.bfloat16 else 0.0, atol=0.0)


@settings(max_examples=examples(20), deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([(64, 64), (80, 32), (48, 48)]), st.booleans(), st.booleans(), DTYPES
)  # fmt: skip
def test_rotary(
    tokens: int, sizes: tuple[int, int], neox: bool, keyed: bool, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    size, rotary_dim = sizes
    rows = torch.randn(tokens, 5 * size, generator=torch.Generator().manual_seed(tokens)).to(dtypes[0])
    query, key = rows[:, : 3 * size], rows[:, 3 * size :] if keyed else None
    cos, sin = angles(tokens, rotary_dim, neox, dtypes[1])
    found = rotary.rotary_embedding(query, key, cos, sin, size, neox)
    wanted = reference.rotary_embedding.reference(query, key, cos, sin, size, neox)
    loose = LOOSE[dtypes[0]]
    torch.testing.assert_close(found[0], wanted[0], rtol=loose, atol=loose)
    assert (found[1] is None) == (wanted[1] is None)
    if found[1] is not None:
        torch.testing.assert_close(found[1], wanted[1], rtol=loose, atol=loose)


@pytest.mark.skipif(emulated.interpreted(), reason="the interpreter rounds to bf16 in its own way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_are_the_reference_s(dtype: torch.dtype) -> None:
    """A product and the sum after it are not rounded as one."""
    rows = torch.randn(5, 4 * 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    turns = *angles(5, 128, True, dtype), 128, True
    wanted, _ = reference.rotary_embedding.reference(rows, None, *turns)
    assert torch.equal(rotary.rotary_embedding(rows, None, *turns)[0], wanted)


SAME = [(each, each) for each in (torch.float32, torch.bfloat16)]
NORMS = st.sampled_from(["none", "plain", "weights", "offsets"])


def norm_of(kind: str, size: int, dtype: torch.dtype, device: str = "cpu") -> QKNorm | None:
    if kind == "none":
        return None
    first, second = (torch.linspace(-1, 2, size, device=device).roll(by).to(dtype) for by in (0, 5))
    given = (None, None) if kind == "plain" else (first, second)
    return QKNorm(*given, eps=1e-5, weight_is_offset=kind == "offsets")


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(1, 3), st.sampled_from([(64, 64), (80, 32)]), st.booleans(), NORMS, st.sampled_from(SAME))
def test_norm_and_rotary(
    tokens: int, sizes: tuple[int, int], neox: bool, kind: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    size, rotary_dim = sizes
    rows = torch.randn(tokens, 12 * size, generator=torch.Generator().manual_seed(tokens)).to(dtypes[0])
    arguments = rows[:, : 9 * size], rows[:, 9 * size :], *angles(tokens, rotary_dim, neox, dtypes[1]), size, neox
    norm = norm_of(kind, size, dtypes[0])
    found = rotary.qk_norm_rope(*arguments, norm)
    loose = LOOSE[dtypes[0]]
    for each, wanted in zip(found, heads.qk_norm_rope.reference(*arguments, norm), strict=True):
        torch.testing.assert_close(each, wanted, rtol=loose, atol=loose)


CACHES = [*SAME, (torch.float32, torch.float16)]


@settings(max_examples=examples(15), deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([(64, 64), (80, 32)]), st.integers(1, 9), NORMS, st.sampled_from(CACHES),
    st.sampled_from([(1.0, 1.0), (0.5, 0.25)]),
)  # fmt: skip
def test_norm_rotary_and_cache(
    tokens: int, sizes: tuple[int, int], kv_heads: int, kind: str, dtypes: tuple[torch.dtype, torch.dtype],
    scales: tuple[float, float],
) -> None:  # fmt: skip
    size, rotary_dim = sizes
    make = torch.Generator().manual_seed(tokens)
    rows = torch.randn(tokens, 3 * kv_heads * size, generator=make).to(dtypes[0])
    query, key, value = rows.chunk(3, -1)
    slots = torch.randperm(4 * 4, generator=make)[:tokens]
    found, wanted = (torch.zeros(4, 4, 2, kv_heads, size, dtype=dtypes[1]) for _ in range(2))
    turns = *angles(tokens, rotary_dim, True, dtypes[0]), True, norm_of(kind, size, dtypes[0]), *scales
    turned = rotary.qk_norm_rope_cache(query, key, value, found, slots, *turns)
    loose = LOOSE[dtypes[0]]
    expected = heads.qk_norm_rope_cache.reference(query, key, value, wanted, slots, *turns)
    torch.testing.assert_close(turned, expected, rtol=loose, atol=loose)
    loose = max(LOOSE[each] for each in dtypes)
    torch.testing.assert_close(found.float(), wanted.float(), rtol=loose, atol=loose)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_cache_in_fp8(dtype: torch.dtype) -> None:
    """Of numbers that need no rounding, which the interpreter does otherwise than a GPU; some are too large."""
    row = torch.tensor([1e6, -1e6, 0.0, 448.0, 1.0, -2.0, 0.5, 1e38]).view(1, 8)
    found, wanted = (torch.zeros(1, 4, 2, 1, 8, dtype=dtype) for _ in range(2))
    turns = torch.tensor([2]), torch.ones(1, 1, 8), torch.zeros(1, 1, 8), True, None, 0.5, 2.0
    turned = rotary.qk_norm_rope_cache(row, row, -row, found, *turns)
    assert torch.equal(turned, heads.qk_norm_rope_cache.reference(row, row, -row, wanted, *turns))
    assert torch.equal(found.float(), wanted.float())


def test_no_rows() -> None:
    empty, (cos, sin) = torch.zeros(0, 128), angles(0, 64, True, torch.float32)
    kept = torch.ones(1, 4, 2, 2, 64)
    slots = torch.zeros(0, dtype=torch.int64)
    turned = rotary.qk_norm_rope_cache(empty, empty, empty, kept, slots, cos, sin, True, None, 1.0, 1.0)
    assert turned.shape == (0, 128)
    assert bool((kept == 1).all())


def test_a_row_has_its_own_bits() -> None:
    """Alone, among others, and with or without the write to the cache."""
    rows = torch.randn(5, 6 * 64, generator=torch.Generator().manual_seed(3))
    cos, sin = angles(5, 64, True, torch.float32)
    norm = norm_of("weights", 64, torch.float32)
    query, key = rows[:, : 4 * 64], rows[:, 4 * 64 :]
    together = rotary.qk_norm_rope(query, key, cos, sin, 64, True, norm)
    kept = torch.zeros(2, 4, 2, 2, 64)
    slots = torch.tensor([6, 1, 2, 3, 4])
    turned = rotary.qk_norm_rope_cache(query, key, key, kept, slots, cos, sin, True, norm, 1.0, 1.0)
    assert torch.equal(turned, together[0])
    assert torch.equal(kept.flatten(0, 1)[slots, 0].flatten(1), together[1])
    for row in range(5):
        at = slice(row, row + 1)
        alone = rotary.qk_norm_rope(query[at], key[at], cos[at], sin[at], 64, True, norm)
        assert torch.equal(alone[0], together[0][at])
        assert torch.equal(alone[1], together[1][at])


@pytest.mark.gpu
@pytest.mark.parametrize("neox", [False, True])
def test_on_a_gpu(neox: bool) -> None:
    table, positions = torch.randn(64, 128, device="cuda"), torch.arange(50, device="cuda")
    for found, wanted in zip(
        rotary_angles(table, positions, neox, torch.bfloat16),
        reference.rotary_angles.reference(table, positions, neox, torch.bfloat16), strict=True,
    ):  # fmt: skip
        assert torch.equal(found, wanted)
    rows = torch.randn(50, 48 * 128, device="cuda", dtype=torch.bfloat16)
    cos, sin = (each.cuda() for each in angles(50, 128, neox, torch.bfloat16))
    arguments = rows[:, : 32 * 128], rows[:, 32 * 128 :], cos, sin, 128, neox
    for found, wanted in zip(
        rotary.rotary_embedding(*arguments), reference.rotary_embedding.reference(*arguments), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", ["none", "weights", "offsets"])
def test_norm_rotary_and_cache_on_a_gpu(kind: str, dtype: torch.dtype) -> None:
    rows = torch.randn(500, 48 * 128, device="cuda", dtype=torch.bfloat16)
    query, key, value = rows.split([32 * 128, 8 * 128, 8 * 128], -1)
    slots = torch.randperm(64 * 16, device="cuda")[:500]
    found, wanted = (torch.zeros(64, 16, 2, 8, 128, dtype=dtype, device="cuda") for _ in range(2))
    cos, sin = (each.cuda() for each in angles(500, 128, True, torch.bfloat16))
    turns = cos, sin, True, norm_of(kind, 128, torch.bfloat16, "cuda"), 0.5, 0.25
    turned = rotary.qk_norm_rope_cache(query, key, value, found, slots, *turns)
    expected = heads.qk_norm_rope_cache.reference(query, key, value, wanted, slots, *turns)
    torch.testing.assert_close(turned, expected, rtol=0.016, atol=0.01)
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0.13 if dtype.itemsize == 1 else 0.016, atol=0.01)
