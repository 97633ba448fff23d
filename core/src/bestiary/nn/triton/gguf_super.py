"""GGUF's blocks of 256 elements decoded in registers: arguments and what comes back as in `gguf_blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from .bits import SIGNS, four_bytes, half, half_of, halves_of, lower_half, number, words


@triton.jit  # type: ignore[untyped-decorator]
def k45(  # type: ignore[no-untyped-def]
    rows, start, side, depth, there, zero, FORMAT: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Q4_K and Q5_K: four units of 64; a unit's lower nibbles are one group of 32, its upper ones the next. `rows`
    are where blocks begin: these types have no planes."""
    FIVE: tl.constexpr = FORMAT == "Q5_K"
    BYTES: tl.constexpr = 176 if FIVE else 144
    COUNT: tl.constexpr = 32 // SIZE if side is None else 16 // SIZE
    skipped = 0 if side is None else side * 16
    first_unit = 0 if BLOCK_K % 256 == 0 else start // 64 & 3
    u = first_unit + tl.arange(0, BLOCK_K // 64)[None, :, None]
    block, unit = rows + (start // 256 * BYTES + (u >> 2) * BYTES), u & 3
    within = there if EVEN else there & (start // 256 * 256 + u * 64 < depth)
    one, less, two, other_less = _scales(block, unit, within, zero, SIZE)
    low = words(block + (48 if FIVE else 16) + unit * 32 + skipped, within, COUNT, SIZE)
    if FIVE:
        bits = words(block + 16 + skipped, within, COUNT, SIZE) >> 2 * unit
        high = ((low >> 4) & 0x0F0F0F0F) | ((bits << 3) & 0x10101010)
        low = (low & 0x0F0F0F0F) | ((bits << 4) & 0x10101010)
        numbers = halves_of(low, high, zero, one, less, two, other_less, 0, 0, 5, 0, SIZE)
    else:
        numbers = halves_of(low, low, zero, one, less, two, other_less, 0, 4, 4, 0, SIZE)
    return tl.reshape(numbers, (rows.shape[0], 2 * COUNT * SIZE * (BLOCK_K // 64) // 32, 32))


@triton.jit  # type: ignore[untyped-decorator]
def _scales(block, unit, within, zero, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The factor and the addend of a unit's first group, and those of its second.

    Two fp16 factors, then six bits of scale and minimum for each group: of the first four groups in a byte each, of the
    others in nibbles of the last four bytes and the upper bits of the first eight.
    """
    if SIZE == 4:
        even, odd = tl.split(tl.reshape(words(block, within, 4, 4), (block.shape[0], block.shape[1], 2, 2)))
        factors, second = tl.split(even)
        first, third = tl.split(odd)
        factors, first, second, third = factors[:, :, None], first[:, :, None], second[:, :, None], third[:, :, None]
    else:
        factors, first = four_bytes(block, within, SIZE), four_bytes(block + 4, within, SIZE)
        second, third = four_bytes(block + 8, within, SIZE), four_bytes(block + 12, within, SIZE)
    scales = tl.where(unit < 2, first, (third & 0x0F0F0F0F) | ((first >> 2) & 0x30303030)) >> ((unit & 1) << 4)
    minima = tl.where(unit < 2, second, ((third >> 4) & 0x0F0F0F0F) | ((second >> 2) & 0x30303030)) >> ((unit & 1) << 4)
    factor, less = lower_half(factors), -lower_half(factors >> 16)
    one, two = number(scales, zero, 0, 6, 0) * factor, number(scales, zero, 8, 6, 0) * factor
    return one, number(minima, zero, 0, 6, 0) * less, two, number(minima, zero, 8, 6, 0) * less


@triton.jit  # type: ignore[untyped-decorator]
def k6(  # type: ignore[no-untyped-def]
    rows, start, side, depth, there, zero, BLOCK_K: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
    PLANES: tl.constexpr,
):  # fmt: skip
    """Q6_K: two halves; lower nibbles of groups 0 and 1, whose upper ones are 2's and 3's, two more bits of all four in
    one byte, a signed scale for each 16."""
    COUNT: tl.constexpr = 32 // SIZE if side is None else 16 // SIZE
    skipped = 0 if side is None else side * 16
    first_half = 0 if BLOCK_K % 256 == 0 else start // 128 & 1
    u = first_half + tl.arange(0, BLOCK_K // 128)[None, :, None]
    block, which = start // 256 + (u >> 1), u & 1
    within = there if EVEN else there & (start // 256 * 256 + u * 128 < depth)
    if PLANES:
        low, high, scales = rows[0] + block * 128, rows[1] + block * 64, rows[2] + block * 16
        factor = half_of(rows[3], rows[4] + block, within)
    else:
        low = rows[0] + block * 210
        high, scales, factor = low + 128, low + 192, half(low + 208, within)
    one = words(low + which * 64 + skipped, within, COUNT, SIZE)
    two = words(low + which * 64 + 32 + skipped, within, COUNT, SIZE)
    bits = words(high + which * 32 + skipped, within, COUNT, SIZE)
    first = (one & 0x0F0F0F0F) | ((bits << 4) & 0x30303030)
    second = (two & 0x0F0F0F0F) | ((bits << 2) & 0x30303030)
    third = ((one >> 4) & 0x0F0F0F0F) | (bits & 0x30303030)
    fourth = ((two >> 4) & 0x0F0F0F0F) | ((bits >> 2) & 0x30303030)
    lower = _k6_groups(first, second, scales + which * 8, side, factor, within, zero, COUNT, SIZE)
    upper = _k6_groups(third, fourth, scales + which * 8 + 4, side, factor, within, zero, COUNT, SIZE)
    both = tl.permute(tl.join(lower, upper), (0, 1, 3, 2))
    return tl.reshape(both, (one.shape[0], 4 * COUNT * SIZE * (BLOCK_K // 128) // 32, 32))


@triton.jit  # type: ignore[untyped-decorator]
def _k6_groups(first, second, at, side, factor, within, zero, COUNT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two groups of 32, words of `COUNT`, or a half of each, and four signed scales at each of `at`, times a factor."""
    scales = four_bytes(at, within, SIZE) ^ SIGNS
    if side is None:
        upper = tl.arange(0, COUNT)[None, None, :] >= COUNT // 2
        one = tl.where(upper, number(scales, zero, 8, 8, 128), number(scales, zero, 0, 8, 128)) * factor
        scales = scales >> 12
        two = tl.where(upper, number(scales, zero, 12, 8, 128), number(scales, zero, 4, 8, 128)) * factor
    else:
        scales = scales >> (side * 8)
        one, two = number(scales, zero, 0, 8, 128) * factor, number(scales >> 12, zero, 4, 8, 128) * factor
    return halves_of(first, second, zero, one, None, two, None, 0, 0, 6, 32, SIZE)
