"""Weights whose groups are of inputs in an order of their own (GPTQ's act order), sorted when they are loaded.

Kernels want columns that share a scale side by side. So columns are sorted by their groups, and inputs are brought into
the same order before they are multiplied, which costs little: there are as many of them as a weight has columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.ops.quant import packed, unpacked

PADDED = 32
"""A rank's share of the inputs may have any number of a group's. Then each group gets columns of zeros up to a multiple
of so many, and has a scale for each so many of them."""


class Columns(NamedTuple):
    """`codes` uint8 ``[out, in]``, of 4 bits two in a byte, `scale` and `zero` ``[out, groups]``, a group being of
    `group_size` columns."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_size: int
    bits: int


def by_group(found: Columns, group_of: Tensor) -> tuple[Columns, Tensor]:
    """The same weight with columns sorted by `group_of` int32 ``[in]``, and int32, which input each of them is of.

    Where each group has `group_size` inputs, the last one perhaps fewer, scales and zeros stay as they are.
    """
    counts = _counts(group_of, found.scale.shape[1])
    order = torch.argsort(group_of, stable=True)
    codes = unpacked(found.codes, len(group_of)) if found.bits == 4 else found.codes
    codes, scale, zero, size = codes[:, order], found.scale, found.zero, found.group_size
    if bool((counts[:-1] != size).any()) or int(counts[-1]) > size:
        codes, order, of_part = _padded(codes, zero, order, group_of, counts)
        scale, zero, size = scale[:, of_part].contiguous(), zero[:, of_part].contiguous(), PADDED
    return Columns(packed(codes) if found.bits == 4 else codes, scale, zero, size, found.bits), order.to(torch.int32)


def most_added(rows: int, groups: int, width: int, bits: int) -> int:
    """The most bytes that columns of zeros, and scales and zeros of more groups, come to.

    Once packed, a column may take a bit more than its code.
    """
    more = (PADDED - 1) * groups
    scales = (width + more) // PADDED - groups
    return rows * (more * (bits + 1) // 8 + max(scales, 0) * 5)


def _padded(
    codes: Tensor, zero: Tensor, order: Tensor, group_of: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted codes with columns that stand for zero after each group's, the order of such, and which group every
    `PADDED` columns are of."""
    parts = -(-counts // PADDED)
    of_part = torch.repeat_interleave(torch.arange(len(counts), device=codes.device), parts)
    before, starts = counts.cumsum(0) - counts, (parts.cumsum(0) - parts) * PADDED
    groups = group_of[order].long()
    places = starts[groups] + torch.arange(len(order), device=codes.device) - before[groups]
    made = zero[:, of_part].repeat_interleave(PADDED, 1)
    made[:, places] = codes
    wider = torch.zeros(made.shape[1], dtype=order.dtype, device=order.device)
    wider[places] = order
    return made, wider, of_part


def _counts(group_of: Tensor, groups: int) -> Tensor:
    if group_of.numel() and not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
        raise WeightsMismatch(
            "an input belongs to a group that is not there",
            limit=f"0…{groups - 1}", value=[int(group_of.min()), int(group_of.max())],
        )  # fmt: skip
    return torch.bincount(group_of, minlength=groups)
