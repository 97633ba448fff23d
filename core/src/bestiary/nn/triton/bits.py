"""Words of packed codes taken apart, as fp32, in the order that rows have them. No element leaves its thread.

Words are int32 ``[n, groups, words]`` with `SIZE` bytes each, 2 or 4, the lowest first. `zero` is a 0 that compilers do
not know of: what is added to it stays in a register, and a mask and a constant take one instruction instead of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIGNS = tl.constexpr(0x80808080 - (1 << 32))
"""The sign of each byte of an int32: signed bytes are unsigned ones less 128, their signs being turned."""


@triton.jit  # type: ignore[untyped-decorator]
def number(word, zero, AT: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The `BITS` bits of words from bit `AT` on, at most ``23 - BITS``, less `LESS`, as fp32, exactly: beside the
    exponent of ``2 ** (23 - AT)`` they are that number and theirs."""
    MASK: tl.constexpr = ((1 << BITS) - 1) << AT
    EXPONENT: tl.constexpr = (150 - AT) << 23
    MORE: tl.constexpr = float(2 ** (23 - AT) + LESS)
    return ((word & MASK) | (zero + EXPONENT)).to(tl.float32, bitcast=True) - MORE


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(word, zero, factor, addend, AT: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr):  # type: ignore[no-untyped-def]
    made = number(word, zero, AT, BITS, LESS)
    return made * factor if addend is None else tl.fma(made, factor, addend)


@triton.jit  # type: ignore[untyped-decorator]
def bytes_of(word, zero, factor, LESS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every byte, less `LESS`, times a factor: fp32 ``[n, groups, bytes]``."""
    even, odd = _scaled(word, zero, factor, None, 0, 8, LESS), _scaled(word, zero, factor, None, 8, 8, LESS)
    if SIZE == 4:
        upper = word >> 12
        even = tl.join(even, _scaled(upper, zero, factor, None, 4, 8, LESS))
        odd = tl.join(odd, _scaled(upper, zero, factor, None, 12, 8, LESS))
    return tl.reshape(tl.join(even, odd), (word.shape[0], word.shape[1], SIZE * word.shape[2]))


@triton.jit  # type: ignore[untyped-decorator]
def halves_of(  # type: ignore[no-untyped-def]
    low, high, zero, factor, addend, other_factor, other_addend,
    AT: tl.constexpr, OTHER_AT: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The `BITS` bits from bit `AT` on of all bytes of a group's low words, less `LESS`, times a factor, plus an addend
    that may be None; then those from `OTHER_AT` on of its high words: fp32 ``[n, groups, bytes of both]``.

    Bytes are joined last, so that those that lie side by side are side by side in registers.
    """
    # Shifts by 12 instead of 16 keep masks away from bit 0, where the compiler would take them for another shift.
    even = _both(low, high, zero, factor, addend, other_factor, other_addend, AT, OTHER_AT, BITS, LESS)
    odd = _both(low, high, zero, factor, addend, other_factor, other_addend, AT + 8, OTHER_AT + 8, BITS, LESS)
    if SIZE == 4:
        one, two = low >> 12, high >> 12
        third = _both(one, two, zero, factor, addend, other_factor, other_addend, AT + 4, OTHER_AT + 4, BITS, LESS)
        last = _both(one, two, zero, factor, addend, other_factor, other_addend, AT + 12, OTHER_AT + 12, BITS, LESS)
        even, odd = tl.join(even, third), tl.join(odd, last)
    return in_order(tl.join(even, odd), SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def _both(  # type: ignore[no-untyped-def]
    low, high, zero, factor, addend, other_factor, other_addend,
    AT: tl.constexpr, OTHER_AT: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr,
):  # fmt: skip
    first = _scaled(low, zero, factor, addend, AT, BITS, LESS)
    return tl.join(first, _scaled(high, zero, other_factor, other_addend, OTHER_AT, BITS, LESS))


@triton.jit  # type: ignore[untyped-decorator]
def in_order(numbers, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[n, groups, words, halves, …]``, `SIZE` bytes of each half of a word → ``[n, groups, bytes of both]``."""
    COUNT: tl.constexpr = numbers.shape[2]
    parts = tl.reshape(numbers, (numbers.shape[0], numbers.shape[1], COUNT, 2, SIZE))
    return tl.reshape(tl.permute(parts, (0, 1, 3, 2, 4)), (numbers.shape[0], numbers.shape[1], 2 * SIZE * COUNT))


@triton.jit
def nibbles_of(word, zero, less):  # type: ignore[no-untyped-def]
    """The eight nibbles of words of four bytes, the lowest first, less whole numbers ``[n, groups, 1]`` from 0 to 255:
    fp32 ``[n, groups, nibbles]``."""
    upper = word >> 12
    first = tl.join(_nibble(word, zero, less, 0), _nibble(word, zero, less, 16))
    second = tl.join(_nibble(word, zero, less, 4), _nibble(upper, zero, less, 8))
    third = tl.join(_nibble(word, zero, less, 8), _nibble(upper, zero, less, 12))
    last = tl.join(_nibble(word, zero, less, 12), _nibble(upper, zero, less, 16))
    even, odd = tl.join(first, third), tl.join(second, last)
    return tl.reshape(tl.join(even, odd), (word.shape[0], word.shape[1], 8 * word.shape[2]))


@triton.jit  # type: ignore[untyped-decorator]
def _nibble(word, zero, less, AT: tl.constexpr):  # type: ignore[no-untyped-def]
    BITS: tl.constexpr = 15 << AT
    EXPONENT: tl.constexpr = (150 - AT) << 23
    MORE: tl.constexpr = float(2 ** (23 - AT))
    return ((word & BITS) | (zero + EXPONENT)).to(tl.float32, bitcast=True) - (less + MORE)


@triton.jit  # type: ignore[untyped-decorator]
def words(at, within, COUNT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """`COUNT` words that lie side by side at each of `at`, pointers ``[n, groups, 1]`` that are multiples of `SIZE`."""
    TYPE: tl.constexpr = tl.int32 if SIZE == 4 else tl.int16
    each = at.to(tl.pointer_type(TYPE), bitcast=True) + tl.arange(0, COUNT)[None, None, :]
    return tl.load(each, mask=within, other=0).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def four_bytes(at, within, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four bytes at each of `at`, as int32."""
    if SIZE == 4:
        return words(at, within, 1, 4)
    else:
        return (words(at, within, 1, 2) & 65535) | (words(at + 2, within, 1, 2) << 16)


@triton.jit
def half(at, within):  # type: ignore[no-untyped-def]
    """The fp16 at each of `at`, as fp32."""
    return tl.load(at.to(tl.pointer_type(tl.float16), bitcast=True), mask=within, other=0).to(tl.float32)


@triton.jit
def lower_half(word):  # type: ignore[no-untyped-def]
    """The fp16 that the lower bits of words are, as fp32."""
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def half_of(halves, at, within):  # type: ignore[no-untyped-def]
    """The fp16 at each place of many that begin at a multiple of four bytes, as fp32: read in words of which each is
    two, since what is narrower is not copied ahead."""
    return lower_half(words(halves + (at >> 1) * 4, within, 1, 4) >> ((at & 1) << 4).to(tl.int32))
