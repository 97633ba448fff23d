"""Rotary embedding against the torch reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import rotary as reference
from bestiary.nn.triton import rotary

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
    return reference.rotary_angles.reference(table, torch.arange(tokens) * 3 % 50, neox)


@settings(max_examples=20, deadline=None)
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


@pytest.mark.gpu
@pytest.mark.parametrize("neox", [False, True])
def test_on_a_gpu(neox: bool) -> None:
    rows = torch.randn(50, 48 * 128, device="cuda", dtype=torch.bfloat16)
    cos, sin = (each.cuda() for each in angles(50, 128, neox, torch.bfloat16))
    arguments = rows[:, : 32 * 128], rows[:, 32 * 128 :], cos, sin, 128, neox
    for found, wanted in zip(
        rotary.rotary_embedding(*arguments), reference.rotary_embedding.reference(*arguments), strict=True
    ):
        torch.testing.assert_close(found, wanted)
