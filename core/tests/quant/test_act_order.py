"""Columns sorted by their groups: the same products as those of numbers decoded where they were."""

from __future__ import annotations

import pytest
import torch

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.ops.quant import linear_int4, linear_uint8, packed
from bestiary.nn.quant.act_order import PADDED, Columns, by_group

ROWS = 6


def drawn(width: int, groups: int, size: int, bits: int) -> tuple[Columns, torch.Tensor]:
    """Columns, and the codes they are made of."""
    random = torch.Generator().manual_seed(width + bits)
    codes = torch.randint(2**bits, (ROWS, width), generator=random, dtype=torch.uint8)
    scale = torch.rand(ROWS, groups, generator=random)
    zero = torch.randint(2**bits, (ROWS, groups), generator=random, dtype=torch.uint8)
    return Columns(packed(codes) if bits == 4 else codes, scale, zero, size, bits), codes


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("counts", "size", "sorted_size"),
    [
        ([32, 32, 32], 32, 32),
        ([64, 64, 22], 64, 64),
        ([40, 24, 64], 64, PADDED),
        ([0, 70, 58], 128, PADDED),
        ([1, 1, 126], 128, PADDED),
    ],
)
def test_products_stay(bits: int, counts: list[int], size: int, sorted_size: int) -> None:
    random = torch.Generator().manual_seed(1)
    ordered = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    group_of = ordered[torch.randperm(len(ordered), generator=random)].to(torch.int32)
    found, codes = drawn(len(group_of), len(counts), size, bits)
    made, order = by_group(found, group_of)
    product = linear_int4 if bits == 4 else linear_uint8
    x = torch.randn(3, len(group_of), generator=random)
    at = group_of.long()
    numbers = (codes.float() - found.zero.float()[:, at]) * found.scale[:, at]
    torch.testing.assert_close(
        product(x, made.codes, made.scale, made.zero, made.group_size, order), x @ numbers.T, rtol=1e-4, atol=1e-4
    )
    assert made.group_size == sorted_size and order.dtype is torch.int32
    assert made.scale.shape[1] == -(-len(order) // made.group_size)


def test_sorted_columns_stay() -> None:
    found, _ = drawn(96, 3, 32, 4)
    made, order = by_group(found, torch.arange(96, dtype=torch.int32) // 32)
    assert torch.equal(made.codes, found.codes) and torch.equal(order, torch.arange(96, dtype=torch.int32))


@pytest.mark.parametrize("group", [-1, 3])
def test_unknown_groups_are_refused(group: int) -> None:
    found, _ = drawn(96, 3, 32, 4)
    group_of = torch.arange(96, dtype=torch.int32) // 32
    group_of[5] = group
    with pytest.raises(WeightsMismatch, match="a group that is not there"):
        by_group(found, group_of)
