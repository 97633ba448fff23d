"""Activations against their torch references."""

from __future__ import annotations

import pytest
import torch

from bestiary.nn.ops import activation as reference
from bestiary.nn.triton import activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 2 * 1000), (2, 2, 2 * 1536), (0, 8)])
def test_silu_and_mul(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(activation.silu_and_mul(x), reference.silu_and_mul.reference(x))
