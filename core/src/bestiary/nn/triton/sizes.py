"""Sizes of launches, computed on the host. Triton's functions of these names serve kernels too, and take ten times as
long, several times a launch."""

from __future__ import annotations


def cdiv(size: int, part: int) -> int:
    """How many parts of a size there are, the last one maybe not whole."""
    return -(-size // part)


def power_of_2(size: int) -> int:
    """The least power of two that is not less than `size`, which is at least 1."""
    return 1 << (size - 1).bit_length()
