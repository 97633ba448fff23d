"""Few rows times weights that are decoded where they are multiplied: no number goes to another thread.

A tensor core wants of each lane certain inputs of certain outputs. Which inputs those are does not matter, so long as
both factors have the same: so each lane reads 16 bytes of codes side by side, and what they say are its inputs. Four
lanes read 64 bytes of one output, eight outputs are read at once, and each warp has a part of the inputs. Decoded
numbers, several times as many bytes as their codes, do not pass through shared memory; nor do lanes meet there in one
bank, since each thing that is copied ahead is no wider than what all lanes read at once.

`PARTS` warps have ``BLOCK_K / PARTS`` inputs each, a part: 16 bytes of codes for each of four lanes. `APART`: into how
many pieces of a row that falls what a lane's bytes say: one, or several of 16, as GGUF's blocks of 256 have them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def lanes_of(PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of every eight lanes that read different rows, by warps: which row, and which part, ``[PARTS * 8, 1, 1]``."""
    at = tl.arange(0, PARTS * 8)[:, None, None]
    return at & 7, at >> 3


@triton.jit  # type: ignore[untyped-decorator]
def _piece(x_at, k, there, depth, AT: tl.constexpr, LENGTH: tl.constexpr, APART: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The `AT`-th eight inputs that a lane has in a part, ``[PARTS * 8, 4, 8]``."""
    TURNS: tl.constexpr = 1 if APART == 1 else 2
    PIECE: tl.constexpr = LENGTH // (4 * APART)
    EIGHTS: tl.constexpr = PIECE // 8
    lane, i = tl.arange(0, 4)[None, :, None], tl.arange(0, 8)[None, None, :]
    before = lane // TURNS * (APART * TURNS * PIECE) + lane % TURNS * PIECE
    at = before + (AT // EIGHTS * (TURNS * PIECE) + AT % EIGHTS * 8) + i
    within = there if EVEN else there & (k + at < depth)
    return tl.load(x_at + at, mask=within, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def _four(  # type: ignore[no-untyped-def]
    x_at, k, there, depth, AT: tl.constexpr, BY: tl.constexpr, LENGTH: tl.constexpr, APART: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Every `BY`-th of a lane's eights, from one on: ``[PARTS * 8, 4, 8, 2, 2]``."""
    even = tl.join(
        _piece(x_at, k, there, depth, AT, LENGTH, APART, EVEN),
        _piece(x_at, k, there, depth, AT + 2 * BY, LENGTH, APART, EVEN),
    )
    odd = tl.join(
        _piece(x_at, k, there, depth, AT + BY, LENGTH, APART, EVEN),
        _piece(x_at, k, there, depth, AT + 3 * BY, LENGTH, APART, EVEN),
    )
    return tl.join(even, odd)


@triton.jit  # type: ignore[untyped-decorator]
def _eights(x_at, k, there, depth, LENGTH: tl.constexpr, APART: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """All of a lane's eights of a part, 2, 4 or 8, in their order: ``[PARTS * 8, 4, 8, …]``."""
    if LENGTH == 64:
        return tl.join(
            _piece(x_at, k, there, depth, 0, LENGTH, APART, EVEN), _piece(x_at, k, there, depth, 1, LENGTH, APART, EVEN)
        )
    elif LENGTH == 128:
        return _four(x_at, k, there, depth, 0, 1, LENGTH, APART, EVEN)
    else:
        return tl.join(
            _four(x_at, k, there, depth, 0, 2, LENGTH, APART, EVEN),
            _four(x_at, k, there, depth, 1, 2, LENGTH, APART, EVEN),
        )


@triton.jit  # type: ignore[untyped-decorator]
def inputs_by_lanes(  # type: ignore[no-untyped-def]
    x, row, part, start, rows, depth, x_stride,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, APART: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Inputs from `start` on of `BLOCK_M` rows, 8 or 16, `row` being the first eight of them:
    ``[PARTS, BLOCK_K / PARTS, BLOCK_M]``."""
    LENGTH: tl.constexpr = BLOCK_K // PARTS
    k = start + part * LENGTH
    at = x + row.to(tl.int64) * x_stride + k
    found = _eights(at, k, row < rows, depth, LENGTH, APART, EVEN)
    if BLOCK_M == 16:
        more = _eights(at + 8 * x_stride, k, row + 8 < rows, depth, LENGTH, APART, EVEN)
        found = tl.join(found, more)
    split = tl.reshape(found, (PARTS, 8, 4, 2, 4, LENGTH // 32, BLOCK_M // 8))
    return tl.reshape(tl.permute(split, (0, 5, 3, 2, 4, 6, 1)), (PARTS, LENGTH, BLOCK_M))


@triton.jit  # type: ignore[untyped-decorator]
def products_by_lanes(  # type: ignore[no-untyped-def]
    numbers, left, acc,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Sums ``[PARTS, BLOCK_N, BLOCK_M]`` with the products of inputs, and of weights decoded as fp32
    ``[PARTS * 8, …, BLOCK_N / 8]``, inputs in their order between."""
    LENGTH: tl.constexpr = BLOCK_K // PARTS
    TURNS: tl.constexpr = 1 if APART == 1 else 2
    PIECE: tl.constexpr = LENGTH // (4 * APART)
    split = tl.reshape(numbers, (PARTS, 8, 4 // TURNS, APART, TURNS, PIECE // 4, 4, BLOCK_N // 8))
    right = tl.reshape(tl.permute(split, (0, 7, 1, 3, 5, 2, 4, 6)), (PARTS, BLOCK_N, LENGTH))
    return tl.dot(right.to(left.dtype), left, acc)
