"""NaN and Inf in blocks: only those with a scale of the largest exponents can hold any, and only these are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from bestiary.api.ggml_types import GgmlType

from .dequant import FLOATS, decode_rows

Bits = tuple[tuple[int, int], ...]
"""(byte of a block, mask): a scale may be too large where all these bits are set, its exponent's."""

_CHUNK_BLOCKS = 1 << 12


def _half(*offsets: int) -> tuple[Bits, ...]:
    return tuple(((at + 1, 0x7C),) for at in offsets)


_SCALES: Mapping[GgmlType, tuple[Bits, ...]] = MappingProxyType(
    {
        GgmlType.Q4_1: _half(0, 2),
        GgmlType.Q5_1: _half(0, 2),
        GgmlType.Q2_K: _half(80, 82),
        GgmlType.Q3_K: _half(108),
        GgmlType.Q4_K: _half(0, 2),
        GgmlType.Q5_K: _half(0, 2),
        GgmlType.Q6_K: _half(208),
        GgmlType.TQ1_0: _half(52),
        GgmlType.TQ2_0: _half(64),
        GgmlType.IQ1_M: (((55, 0x70), (53, 0xC0)),),  # a nibble in each of the last four words
        GgmlType.MXFP4: (((0, 0xFC),),),
        GgmlType.NVFP4: (),
    }
)
"""Where the scales lie; in every other type one begins the block."""


def count_nonfinite_in_blocks(data: torch.Tensor, type: GgmlType) -> int:
    """How many of the numbers that uint8 blocks ``[…, bytes per row]`` stand for are NaN or infinite."""
    if type in FLOATS:
        return int(torch.count_nonzero(~torch.isfinite(data.view(FLOATS[type]).float())))
    blocks = data.reshape(-1, type.type_size)
    bad = torch.zeros(len(blocks), dtype=torch.bool)
    for scale in _SCALES.get(type, _half(0)):
        bad |= torch.stack([blocks[:, at] & mask == mask for at, mask in scale]).all(0)
    if not bad.any():
        return 0
    return sum(_count(part, type) for part in torch.split(blocks[bad], _CHUNK_BLOCKS))


def _count(blocks: torch.Tensor, type: GgmlType) -> int:
    numbers = decode_rows(blocks, type, torch.empty(len(blocks), type.block_size))
    return int(torch.count_nonzero(~torch.isfinite(numbers)))
