"""The tensor types of GGUF files: number, elements per block and bytes per block.

A row of a tensor is a whole number of blocks; a block holds its elements' quants and their scales. The facts are those
of ggml's type enumeration as of its value 42. Formats that ggml uses only between operations (Q8_1, Q8_K) never stand
in a file and are not listed.
"""

from __future__ import annotations

from enum import IntEnum

_BLOCKS: dict[int, tuple[int, int]] = {}


class GgmlType(IntEnum):
    """One tensor type; `block_size` is in elements, `type_size` in bytes."""

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18

    def __new__(cls, number: int, block_size: int, type_size: int) -> GgmlType:
        member = int.__new__(cls, number)
        member._value_ = number
        _BLOCKS[number] = (block_size, type_size)
        return member

    @property
    def block_size(self) -> int:
        return _BLOCKS[self][0]

    @property
    def type_size(self) -> int:
        return _BLOCKS[self][1]


_BY_NUMBER = {int(member): member for member in GgmlType}


def type_of(number: int) -> GgmlType | None:
    """The type with this number, or None where ggml knows none."""
    return _BY_NUMBER.get(number)
