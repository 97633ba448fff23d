"""Numbers of a table of sixteen found in registers, where a load for each would take longer than reading the codes.

A GPU permutes the bytes of two words as the nibbles of a third say: so it finds one byte of four numbers at once. A
table is taken apart into bytes, four words for each of the four bytes that a number has.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import libdevice

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def _permuted(first, second, chosen):  # type: ignore[no-untyped-def]
    """Four of the eight bytes of two words, as the lower three bits of the four lowest nibbles of `chosen` say. The
    interpreter has no such instruction."""
    if not _INTERPRETED:
        return libdevice.byte_perm(first, second, chosen)
    else:
        made = chosen & 0
        for at in tl.static_range(4):
            which = (chosen >> (4 * at)) & 7
            word = tl.where(which < 4, first, second)
            made |= ((word >> ((which & 3) * 8)) & 255) << (8 * at)
        return made


@triton.jit  # type: ignore[untyped-decorator]
def _word(at, FIRST: tl.constexpr, BYTE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One byte of each of four numbers."""
    made = (tl.load(at + FIRST) >> (8 * BYTE)) & 255
    for i in tl.static_range(1, 4):
        made |= ((tl.load(at + FIRST + i) >> (8 * BYTE)) & 255) << (8 * i)
    return made


@triton.jit  # type: ignore[untyped-decorator]
def _words(at, BYTE: tl.constexpr):  # type: ignore[no-untyped-def]
    return _word(at, 0, BYTE), _word(at, 4, BYTE), _word(at, 8, BYTE), _word(at, 12, BYTE)


@triton.jit
def table_of(numbers):  # type: ignore[no-untyped-def]
    """A table as `looked_up` takes it, of sixteen fp32; None of None."""
    if numbers is None:
        return None
    else:
        at = numbers.to(tl.pointer_type(tl.int32), bitcast=True)
        return _words(at, 0), _words(at, 1), _words(at, 2), _words(at, 3)


@triton.jit
def bytes_found(words, codes):  # type: ignore[no-untyped-def]
    """Of sixteen bytes in four words, those that the four nibbles in the lower 16 bits of `codes` say."""
    none = codes & 0
    low = _permuted(none + words[0], none + words[1], codes)
    high = _permuted(none + words[2], none + words[3], codes)
    return _permuted(low, high, ((codes & 0x8888) >> 1) | 0x3210)


@triton.jit
def _four(table, codes):  # type: ignore[no-untyped-def]
    """The numbers of the four codes in the lower 16 bits of words, as int32."""
    first, second = bytes_found(table[0], codes), bytes_found(table[1], codes)
    third, last = bytes_found(table[2], codes), bytes_found(table[3], codes)
    lower, upper = _permuted(first, second, 0x5140), _permuted(third, last, 0x5140)
    more_lower, more_upper = _permuted(first, second, 0x7362), _permuted(third, last, 0x7362)
    zero, one = _permuted(lower, upper, 0x5410), _permuted(lower, upper, 0x7632)
    return zero, one, _permuted(more_lower, more_upper, 0x5410), _permuted(more_lower, more_upper, 0x7632)


@triton.jit
def looked_up(table, word):  # type: ignore[no-untyped-def]
    """The numbers of the eight nibbles of words, the lowest first: int32 ``[n, groups, words]`` → fp32
    ``[n, groups, nibbles]``."""
    lower, upper = _four(table, word), _four(table, word >> 16)
    even = tl.join(tl.join(lower[0], upper[0]), tl.join(lower[2], upper[2]))
    odd = tl.join(tl.join(lower[1], upper[1]), tl.join(lower[3], upper[3]))
    found = tl.reshape(tl.join(even, odd), (word.shape[0], word.shape[1], 8 * word.shape[2]))
    return found.to(tl.float32, bitcast=True)
