"""GGUF blocks decoded in registers, as `bestiary.nn.gguf.decoders` defines them: groups of 32 elements of many rows.

Everywhere `rows` is ``[n, 1, 1]``, where each row of blocks begins; `g` ``[1, groups, 1]``, the group's place in the
row; `j` ``[1, 1, 32]``; `within` ``[n, groups, 1]``. What comes back is fp32 ``[n, groups, 32]``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.gguf.codebooks import IQ4_VALUES

FORMATS = frozenset(
    {
        GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K,
        GgmlType.Q6_K, GgmlType.IQ4_NL,
    }
)  # fmt: skip
"""The types that `decoded` knows, by name."""

_IQ4_LOW = tl.constexpr(sum((value & 255) << 8 * at for at, value in enumerate(IQ4_VALUES[:7])))
_IQ4_HIGH = tl.constexpr(sum((value & 255) << 8 * at for at, value in enumerate(IQ4_VALUES[7:14])))
_IQ4_LAST = tl.constexpr(sum((value & 255) << 8 * at for at, value in enumerate(IQ4_VALUES[14:])))
"""Seven values to a word, so that its sign bit is free."""


@triton.jit
def _half(at, within):  # type: ignore[no-untyped-def]
    return tl.load(at.to(tl.pointer_type(tl.float16), bitcast=True), mask=within, other=0).to(tl.float32)


@triton.jit
def _byte(at, within):  # type: ignore[no-untyped-def]
    return tl.load(at, mask=within, other=0).to(tl.int32)


@triton.jit
def _signed(byte):  # type: ignore[no-untyped-def]
    return (byte ^ 128) - 128


@triton.jit
def _iq4(code):  # type: ignore[no-untyped-def]
    words = tl.where(code < 7, _IQ4_LOW, tl.where(code < 14, _IQ4_HIGH, _IQ4_LAST))
    return _signed((words >> (8 * (code % 7)).to(tl.int64) & 255).to(tl.int32))


@triton.jit  # type: ignore[untyped-decorator]
def _small(rows, g, j, within, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks of 32 with a factor, those called _1 with an addend."""
    ADDEND: tl.constexpr = FORMAT == "Q4_1" or FORMAT == "Q5_1"
    FIVE: tl.constexpr = FORMAT == "Q5_0" or FORMAT == "Q5_1"
    SIZE: tl.constexpr = 34 if FORMAT == "Q8_0" else 18 + 2 * ADDEND + 4 * FIVE
    head: tl.constexpr = 4 if ADDEND else 2
    block = rows + g * SIZE
    factor = _half(block, within)
    if FORMAT == "Q8_0":
        return _signed(_byte(block + head + j, within)).to(tl.float32) * factor
    quants = _byte(block + head + 4 * FIVE + j % 16, within) >> (4 * (j // 16)) & 15
    if FIVE:
        quants |= (_byte(block + head + j // 8, within) >> (j % 8) & 1) << 4
    if ADDEND:
        return quants.to(tl.float32) * factor + _half(block + 2, within)
    if FORMAT == "IQ4_NL":
        return _iq4(quants).to(tl.float32) * factor
    return (quants - (16 if FIVE else 8)).to(tl.float32) * factor


@triton.jit  # type: ignore[untyped-decorator]
def _k45(rows, g, j, within, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Q4_K and Q5_K: 256 elements; two factors, and six bits of scale and minimum for each 32."""
    FIVE: tl.constexpr = FORMAT == "Q5_K"
    block, s = rows + (g // 8) * (176 if FIVE else 144), g % 8
    first, second = _byte(block + 4 + s % 4, within), _byte(block + 8 + s % 4, within)
    third = _byte(block + 12 + s % 4, within)
    scale = tl.where(s < 4, first & 63, (third & 15) | (first >> 2 & 48)).to(tl.float32)
    minimum = tl.where(s < 4, second & 63, (third >> 4) | (second >> 2 & 48)).to(tl.float32)
    quants = _byte(block + (48 if FIVE else 16) + (s // 2) * 32 + j, within) >> (4 * (s % 2)) & 15
    if FIVE:
        quants |= (_byte(block + 16 + j, within) >> s & 1) << 4
    return quants.to(tl.float32) * (_half(block, within) * scale) - _half(block + 2, within) * minimum


@triton.jit
def _k6(rows, g, j, within):  # type: ignore[no-untyped-def]
    """Q6_K: 256 elements in two halves; low nibbles, upper two bits, a signed scale for each 16."""
    block, s = rows + (g // 8) * 210, g % 8
    low = _byte(block + (s // 4) * 64 + (s % 2) * 32 + j, within) >> (4 * (s % 4 // 2)) & 15
    high = _byte(block + 128 + (s // 4) * 32 + j, within) >> (2 * (s % 4)) & 3
    scale = _signed(_byte(block + 192 + s * 2 + j // 16, within)).to(tl.float32)
    return ((low | high << 4) - 32).to(tl.float32) * (_half(block + 208, within) * scale)


@triton.jit  # type: ignore[untyped-decorator]
def decoded(rows, g, j, within, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if FORMAT == "Q6_K":
        return _k6(rows, g, j, within)
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        return _k45(rows, g, j, within, FORMAT)
    else:
        return _small(rows, g, j, within, FORMAT)
