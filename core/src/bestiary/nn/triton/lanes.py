"""What a tile reads of both factors, and which thread gets it.

Where rows are few, weights are decoded where they are multiplied: no number goes to another thread. A tensor core wants
of each lane certain inputs of certain outputs. Which inputs those are does not matter, so long as both factors have the
same: so each lane reads 16 bytes of codes side by side, and what they say are its inputs. Four lanes read 64 bytes of
one output, eight outputs are read at once, and each warp has a part of the inputs. Decoded numbers, several times as
many bytes as their codes, do not pass through shared memory; nor do lanes meet there in one bank, since what they read
at once lies side by side, in the order in which they read it.

`PARTS` warps have ``BLOCK_K / PARTS`` inputs each, a part: 16 bytes of codes for each of four lanes. `UNIT`: how many
inputs those bytes are of, 16 or 32 side by side; or 64 or 128 as GGUF's blocks of 256 have them, of which two lanes
have two or four pieces of 16 each. 0, where numbers are brought to the lanes that want them: a tile reads its rows and
outputs in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def rows_read(BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which of a tile's rows is read at each of ``[…, 1]``."""
    if UNIT == 0:
        return tl.arange(0, BLOCK_M)[:, None]
    else:
        at = tl.arange(0, BLOCK_K // 8 * BLOCK_M)[:, None]
        return at // (32 * PARTS) % (BLOCK_M // 8) * 8 + at // 4 % 8


@triton.jit  # type: ignore[untyped-decorator]
def inputs_read(start, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which inputs of those rows are read: ``[1, BLOCK_K]``, ``[PARTS, 1, BLOCK_K / PARTS]``, or where there are units
    in eights, side by side those of four lanes, then of rows and warps, and last the next of each lane."""
    LENGTH: tl.constexpr = BLOCK_K // PARTS
    if UNIT == 0 and PARTS == 1:
        return start + tl.arange(0, BLOCK_K)[None, :]
    elif UNIT == 0:
        return start + tl.arange(0, PARTS)[:, None, None] * LENGTH + tl.arange(0, LENGTH)[None, None, :]
    else:
        LANES: tl.constexpr = 2 if UNIT > 32 else 1
        PIECE: tl.constexpr = UNIT if UNIT < 64 else 16
        at, i = tl.arange(0, BLOCK_K // 8 * BLOCK_M)[:, None], tl.arange(0, 8)[None, :]
        lane, eight = at % 4, at // (4 * PARTS * BLOCK_M)
        before = lane // LANES * UNIT + lane % LANES * PIECE
        before += eight // (PIECE // 8) * (LANES * PIECE) + eight % (PIECE // 8) * 8
        return start + at // 32 % PARTS * LENGTH + before + i


@triton.jit  # type: ignore[untyped-decorator]
def arranged(read, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """What was read as `multiplied` wants it; of units, ``[PARTS, BLOCK_K / PARTS, BLOCK_M]``."""
    if UNIT == 0:
        return read
    else:
        split = tl.reshape(read, (BLOCK_K // PARTS // 32, BLOCK_M // 8, PARTS, 8, 4, 2, 4))
        return tl.reshape(tl.permute(split, (2, 0, 5, 4, 6, 1, 3)), (PARTS, BLOCK_K // PARTS, BLOCK_M))


@triton.jit  # type: ignore[untyped-decorator]
def outputs_read(BLOCK_N: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of which of a tile's outputs a strip is read at each of ``[…, 1, 1]``: those of four lanes are side by side, then
    come rows, warps, and the next output of each lane."""
    if UNIT == 0:
        return tl.arange(0, BLOCK_N)[:, None, None]
    else:
        at = tl.arange(0, BLOCK_N * PARTS * 4)[:, None, None]
        return at // (32 * PARTS) * 8 + at // 4 % 8


@triton.jit  # type: ignore[untyped-decorator]
def strips_from(start, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first input of each of those strips, which are of `UNIT` inputs, or of `BLOCK_K`; and which half of its bytes
    a lane has, None where it has all."""
    if UNIT == 0:
        return start, None
    else:
        at = tl.arange(0, BLOCK_N * PARTS * 4)[:, None, None]
        first, lane = start + at // 32 % PARTS * (BLOCK_K // PARTS), at % 4
        if UNIT > 32:
            return first + lane // 2 * UNIT, lane % 2
        else:
            return first + lane * UNIT, None


@triton.jit  # type: ignore[untyped-decorator]
def products_by_lanes(  # type: ignore[no-untyped-def]
    numbers, left, acc,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Sums ``[PARTS, BLOCK_N, BLOCK_M]`` with the products of what is `arranged` and of weights decoded as fp32, those
    of `outputs_read`."""
    LENGTH: tl.constexpr = BLOCK_K // PARTS
    split = tl.reshape(numbers, (BLOCK_N // 8, PARTS, 8, 4, LENGTH // 16, 4))
    right = tl.reshape(tl.permute(split, (1, 0, 2, 4, 3, 5)), (PARTS, BLOCK_N, LENGTH))
    return tl.dot(right.to(left.dtype), left, acc)
