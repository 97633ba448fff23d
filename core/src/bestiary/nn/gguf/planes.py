"""Rows of blocks laid out in planes: all quants, then all upper bits, then scales, then factors; the same bytes.

The blocks of these types are no multiples of sixteen bytes, most of them not even of four, so that little in them can
be read in words of so many, or be copied while something else is computed. In planes quants can. Every plane has all
rows, one after another, each with all its blocks' bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType

PLANES: Mapping[GgmlType, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        GgmlType.Q4_0: ((2, 16), (0, 2)),
        GgmlType.Q4_1: ((4, 16), (0, 4)),
        GgmlType.IQ4_NL: ((2, 16), (0, 2)),
        GgmlType.Q5_0: ((6, 16), (2, 4), (0, 2)),
        GgmlType.Q5_1: ((8, 16), (4, 4), (0, 4)),
        GgmlType.Q8_0: ((2, 32), (0, 2)),
        GgmlType.Q6_K: ((0, 128), (128, 64), (192, 16), (208, 2)),
    }
)
"""Where each plane's bytes begin in a block, and how many they are."""


def in_planes(blocks: Tensor, kind: GgmlType) -> Tensor:
    """uint8 ``[rows, bytes per row]`` of blocks → ``[rows * bytes per row]`` in planes."""
    each = blocks.view(len(blocks), -1, kind.type_size)
    return torch.cat([each[:, :, at : at + size].flatten() for at, size in PLANES[kind]])


def blocks_of(planes: Tensor, kind: GgmlType, rows: int, ids: Tensor) -> Tensor:
    """The rows `ids` ``[n]`` of `rows` in planes, as blocks ``[n, bytes per row]``."""
    count = planes.numel() // rows // kind.type_size
    found, start = {}, 0
    for at, size in PLANES[kind]:
        plane = planes[start : start + rows * count * size].view(rows, count * size)
        found[at] = plane.index_select(0, ids).view(len(ids), count, size)
        start += rows * count * size
    return torch.cat([found[at] for at in sorted(found)], -1).view(len(ids), count * kind.type_size)
