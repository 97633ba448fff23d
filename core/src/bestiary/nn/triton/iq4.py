"""Codes of IQ4_NL looked up in registers: a GPU's byte permutation finds four of the sixteen numbers at once."""

from __future__ import annotations

import triton
import triton.language as tl

from bestiary.nn.gguf.codebooks import IQ4_VALUES

from .bits import in_order, number
from .tables import bytes_found


def _four(at: int) -> int:
    """Four numbers from one on, plus 128, as the bytes of an int32."""
    return int.from_bytes(bytes(value + 128 for value in IQ4_VALUES[at : at + 4]), "little", signed=True)


_TABLE = tl.constexpr(tuple(_four(at) for at in (0, 4, 8, 12)))
"""The numbers, plus 128."""


@triton.jit  # type: ignore[untyped-decorator]
def iq4(codes, zero, factor, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers of the lower nibbles of all bytes of words, as in `bits`, then of the upper ones, times a factor."""
    found = bytes_found(_TABLE, codes)
    even, odd = _pair(found, zero, factor, 0), _pair(found >> 12, zero, factor, 4)
    if SIZE == 4:
        found = bytes_found(_TABLE, codes >> 16)
        even = tl.join(even, _pair(found, zero, factor, 0))
        odd = tl.join(odd, _pair(found >> 12, zero, factor, 4))
    return in_order(tl.join(even, odd), SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def _pair(found, zero, factor, AT: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.join(number(found, zero, AT, 8, 128) * factor, number(found, zero, AT + 8, 8, 128) * factor)
