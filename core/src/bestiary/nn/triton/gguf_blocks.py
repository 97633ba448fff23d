"""GGUF blocks decoded in registers, as `bestiary.nn.gguf.decoders` defines them: a strip of inputs of many rows.

Every byte is read once, in words of `SIZE` bytes, and what a group has for all its elements once for all. Everywhere
`rows` say where each row begins: its blocks, a pointer ``[n, 1, 1]``; or where `PLANES` (`bestiary.nn.gguf.planes`) its
quants, their upper bits and its scales, such pointers, then where the plane of factors begins, and how many are before
its own, int64 ``[n, 1, 1]``. `there` says which rows are there; inputs are the `BLOCK_K` from `start`, a multiple of
it, on, all of them there where `EVEN`. `side`: None, or which half of every 32 bytes of a block of 256 a row has,
``[n, 1, 1]``, where `BLOCK_K` is 64, or 128 of Q6_K. Addresses of words are multiples of `SIZE`: 4 in planes and where
blocks are of whole words, otherwise 2. `zero` is as in `bits`. What comes back is fp32 ``[n, …]``, in the order of the
inputs. A product that fp32 holds exactly is not rounded before a sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bestiary.api.ggml_types import GgmlType

from .bits import SIGNS, bytes_of, four_bytes, half, half_of, halves_of, lower_half, words
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
    EVEN: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Blocks of 32 with a factor, those called _1 with an addend."""
    ADDEND: tl.constexpr = FORMAT == "Q4_1" or FORMAT == "Q5_1"
    FIVE: tl.constexpr = FORMAT == "Q5_0" or FORMAT == "Q5_1"
    QUANTS: tl.constexpr = 32 if FORMAT == "Q8_0" else 16
    HEAD: tl.constexpr = 4 if ADDEND else 2
    BYTES: tl.constexpr = QUANTS + HEAD + 4 * FIVE
    HALF: tl.constexpr = BLOCK_K == 16
    COUNT: tl.constexpr = (QUANTS // 2 if HALF else QUANTS) // SIZE
    g = tl.arange(0, 1 if HALF else BLOCK_K // 32)[None, :, None]
    within = there if EVEN else there & (start + g * 32 < depth)
    bits = None
    addend = None
    if PLANES:
        first = rows[0] + (start if HALF else start // 32 * QUANTS + g * QUANTS)
        quants = words(first, within, COUNT, SIZE)
        at = rows[4] + (start // 32 + g)
        if ADDEND:
            pair = words(rows[3] + at * 4, within, 1, 4)
            factor, addend = lower_half(pair), lower_half(pair >> 16)
        else:
            factor = half_of(rows[3], at, within)
        if FIVE:
            bits = words(rows[1] + (start // 32 * 4 + g * 4), within, 1, 4)
    else:
        block = rows[0] + (start // 32 * BYTES + g * BYTES)
        quants = words(block + (BYTES - QUANTS) + (start & 16 if HALF else 0), within, COUNT, SIZE)
        if FIVE:
            bits = four_bytes(block + HEAD, within, SIZE)
        if ADDEND:
            pair = four_bytes(block, within, SIZE)
            factor, addend = lower_half(pair), lower_half(pair >> 16)
        else:
            factor = half(block, within)
    return _numbers(quants, bits, zero, factor, addend, FORMAT, SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(quants, bits, zero, factor, addend, FORMAT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    if FORMAT == "Q8_0":
        return bytes_of(quants ^ SIGNS, zero, factor, 128, SIZE)
    elif FORMAT == "IQ4_NL":
        return iq4(quants, zero, factor, SIZE)
    elif bits is not None:
        high = ((quants >> 4) & 0x0F0F0F0F) | _fifth(bits >> 16, quants.shape[2], SIZE)
        low = (quants & 0x0F0F0F0F) | _fifth(bits, quants.shape[2], SIZE)
        return halves_of(low, high, zero, factor, addend, factor, addend, 0, 0, 5, 16 if addend is None else 0, SIZE)
    else:
        return halves_of(
            quants, quants, zero, factor, addend, factor, addend, 0, 4, 4, 8 if addend is None else 0, SIZE
        )


@triton.jit  # type: ignore[untyped-decorator]
def decoded(  # type: ignore[no-untyped-def]
    rows, start, side, depth, there, zero, FORMAT: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr,
    EVEN: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """The numbers; `BLOCK_K` is a multiple of 32, or 16 of Q8_0; for Q4_K and Q5_K of 64, for Q6_K of 128."""
    if FORMAT == "Q6_K":
        return k6(rows, start, side, depth, there, zero, BLOCK_K, SIZE, EVEN, PLANES)
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        return k45(rows[0], start, side, depth, there, zero, FORMAT, BLOCK_K, SIZE, EVEN)
    else:
        return _small(rows, start, depth, there, zero, FORMAT, BLOCK_K, SIZE, EVEN, PLANES)
