"""GGUF blocks decoded in registers, as `bestiary.nn.gguf.decoders` defines them: a strip of inputs of many rows.

Every byte is read once, in words of `SIZE` bytes, and what a group has for all its elements once for all. Everywhere
`rows` are pointers ``[n, 1, 1]``, where each row of blocks begins, and `there` says which rows are there; inputs are
the `BLOCK_K` from `start`, a multiple of it, on, all of them there where `EVEN`. Addresses of words are multiples of
`SIZE`: 4 where blocks are of whole words, otherwise 2. `zero` is as in `bits`. What comes back is fp32
``[n, BLOCK_K / 32, 32]``. A product that fp32 holds exactly is added to something without being rounded before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bestiary.api.ggml_types import GgmlType

from .bits import SIGNS, bytes_of, four_bytes, half, halves_of, words
from .gguf_super import k6, k45
from .iq4 import iq4

FORMATS = frozenset(
    {
        GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K,
        GgmlType.Q6_K, GgmlType.IQ4_NL,
    }
)  # fmt: skip
"""The types that `decoded` knows, by name."""


@triton.jit  # type: ignore[untyped-decorator]
def _fifth(bits, COUNT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits ``[n, groups, 1]``, of which each byte of `COUNT` words has one, as the fifth of every byte."""
    taken = (bits >> (SIZE * tl.arange(0, COUNT))[None, None, :]) & ((1 << SIZE) - 1)
    return (taken * 0x02040810) & 0x10101010


@triton.jit  # type: ignore[untyped-decorator]
def _small(  # type: ignore[no-untyped-def]
    rows, start, depth, there, zero, FORMAT: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Blocks of 32 with a factor, those called _1 with an addend."""
    ADDEND: tl.constexpr = FORMAT == "Q4_1" or FORMAT == "Q5_1"
    FIVE: tl.constexpr = FORMAT == "Q5_0" or FORMAT == "Q5_1"
    BYTES: tl.constexpr = 34 if FORMAT == "Q8_0" else 18 + 2 * ADDEND + 4 * FIVE
    HEAD: tl.constexpr = 4 if ADDEND else 2
    LESS: tl.constexpr = 8 if FORMAT == "Q4_0" else 16 if FORMAT == "Q5_0" else 0
    COUNT: tl.constexpr = 16 // SIZE
    g = tl.arange(0, BLOCK_K // 32)[None, :, None]
    block = rows + (start // 32 * BYTES + g * BYTES)
    within = there if EVEN else there & (start + g * 32 < depth)
    factor = half(block, within)
    if FORMAT == "Q8_0":
        return bytes_of(words(block + HEAD, within, 2 * COUNT, SIZE) ^ SIGNS, zero, factor, 128, SIZE)
    addend = half(block + 2, within) if ADDEND else None
    low = words(block + HEAD + 4 * FIVE, within, COUNT, SIZE)
    if FORMAT == "IQ4_NL":
        return iq4(low, zero, factor, SIZE)
    if FIVE:
        bits = four_bytes(block + HEAD, within, SIZE)
        high = ((low >> 4) & 0x0F0F0F0F) | _fifth(bits >> 16, COUNT, SIZE)
        low = (low & 0x0F0F0F0F) | _fifth(bits, COUNT, SIZE)
        return halves_of(low, high, zero, factor, addend, factor, addend, 0, 0, 5, LESS, SIZE)
    return halves_of(low, low, zero, factor, addend, factor, addend, 0, 4, 4, LESS, SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def decoded(  # type: ignore[no-untyped-def]
    rows, start, depth, there, zero, FORMAT: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The numbers; `BLOCK_K` is a multiple of 32, for Q4_K and Q5_K of 64, for Q6_K of 128."""
    if FORMAT == "Q6_K":
        return k6(rows, start, depth, there, zero, BLOCK_K, SIZE, EVEN)
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        return k45(rows, start, depth, there, zero, FORMAT, BLOCK_K, SIZE, EVEN)
    else:
        return _small(rows, start, depth, there, zero, FORMAT, BLOCK_K, SIZE, EVEN)
