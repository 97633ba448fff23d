"""Packed weights give the products of plain ones, and are used only where they should be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bestiary.nn.ops.linear import FIXED_TILE, linear
from bestiary.nn.ops.registry import Target
from bestiary.nn.quant.packed import pack_weight, why_not_packed

from bestiary.nn.linear import ReplicatedLinear  # isort: skip


def made(weight: torch.Tensor) -> ReplicatedLinear:
    layer = ReplicatedLinear(weight.shape[1], weight.shape[0], bias=False, return_bias=False, params_dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    layer.finish()
    pack_weight(layer)
    return layer


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 130])
def test_packed_products_equal_plain_ones(rows: int) -> None:
    weight, x = torch.randn(33, 65), torch.randn(rows, 65)
    layer = made(weight)
    assert layer.weight.is_mkldnn
    assert layer.weight.shape == weight.shape
    torch.testing.assert_close(layer(x), F.linear(x.double(), weight.double()).float(), rtol=1e-5, atol=1e-5)
    spread = torch.randn(65, rows).t()
    torch.testing.assert_close(layer(spread), F.linear(spread, weight), rtol=1e-5, atol=1e-5)


def test_other_weights_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not made(torch.randn(4, 8, dtype=torch.bfloat16)).weight.is_mkldnn
    monkeypatch.setattr(linear, "active", FIXED_TILE.function)
    assert why_not_packed(torch.randn(4, 8)) == "in deterministic mode a row's product must not depend on its batch"
    assert FIXED_TILE.why_not(Target("cpu", torch.float32, deterministic=True)) is None
