"""Activations against their torch references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bestiary.nn.ops import activation as reference
from bestiary.nn.triton import activation

LOOSE = {torch.bfloat16: {"rtol": 5e-2, "atol": 1e-3}, torch.float16: {"rtol": 5e-3, "atol": 1e-4}}
"""The interpreter cuts numbers short where a GPU rounds them."""
SHAPES = [(1, 2), (3, 2 * 1000), (2, 2, 2 * 600), (0, 8)]
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu and mul": (activation.silu_and_mul, reference.silu_and_mul.reference),
    "gelu and mul": (activation.gelu_and_mul, reference.gelu_and_mul.reference),
    "gelu tanh and mul": (
        lambda x: activation.gelu_and_mul(x, "tanh"), lambda x: reference.gelu_and_mul.reference(x, "tanh")
    ),
    "gelu": (activation.gelu, reference.gelu.reference),
    "gelu tanh": (lambda x: activation.gelu(x, "tanh"), lambda x: reference.gelu.reference(x, "tanh")),
    "quick gelu": (activation.quick_gelu, reference.quick_gelu.reference),
    "relu2": (activation.relu2, reference.relu2.reference),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_like_the_reference(name: str, dtype: torch.dtype) -> None:
    mine, theirs = CASES[name]
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        part = x.flip(0)[..., : 2 * (shape[-1] // 4)]
        for each in (x, part):
            torch.testing.assert_close(mine(each), theirs(each), **LOOSE.get(dtype, {}))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str) -> None:
    mine, theirs = CASES[name]
    x = torch.randn(300, 2 * 14336, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(mine(x), theirs(x))
