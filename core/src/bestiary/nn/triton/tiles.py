"""What products of tiles have in common: which tile a program has, and how its sums are written."""

from __future__ import annotations

import triton
import triton.language as tl

from .lanes import products_by_lanes


@triton.jit  # type: ignore[untyped-decorator]
def tile_at(pid, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of the `pid`-th program: `GROUP_M` row tiles beside one another, then the next columns."""
    tall, wide = (rows + BLOCK_M - 1) // BLOCK_M, (width + BLOCK_N - 1) // BLOCK_N
    first = pid // (GROUP_M * wide) * GROUP_M
    height = min(tall - first, GROUP_M)
    within = pid % (GROUP_M * wide)
    return first + within % height, within // height


@triton.jit  # type: ignore[untyped-decorator]
def no_sums(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of a tile before its first strip, as `multiplied` adds to them."""
    if PARTS == 1:
        return tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
    else:
        return tl.full((PARTS, BLOCK_N, BLOCK_M), 0, tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def multiplied(  # type: ignore[no-untyped-def]
    left, numbers, acc, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """Sums with the products of a strip of inputs, `left`, and of weights, decoded as fp32 ``[BLOCK_N, …]``.

    Where inputs have parts, each of as many warps multiplies its own, so that few rows keep all warps busy. Products
    of weights that are decoded in the layout in which they were loaded take the fewest instructions; a sum of one
    addend is what keeps the compiler from having them decoded in that of the tensor cores.
    """
    if UNIT:
        return products_by_lanes(numbers, left, acc, BLOCK_N, BLOCK_K, PARTS, UNIT)
    elif PARTS == 1:
        right = tl.reshape(numbers, (BLOCK_N, BLOCK_K)).to(left.dtype)
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    else:
        alone = tl.sum(tl.reshape(numbers, (BLOCK_N, BLOCK_K, 1)), 2)
        parts = tl.permute(tl.reshape(alone, (BLOCK_N, PARTS, BLOCK_K // PARTS)), (1, 0, 2))
        return tl.dot(parts.to(left.dtype), tl.permute(left, (0, 2, 1)), acc, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def of_outputs(each, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[BLOCK_N]`` as a dimension of the sums of `multiplied`."""
    return each[None, :] if PARTS == 1 else each[None, :, None]


@triton.jit  # type: ignore[untyped-decorator]
def of_rows(each, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[BLOCK_M]`` as a dimension of the sums of `multiplied`."""
    return each[:, None] if PARTS == 1 else each[None, None, :]


@triton.jit  # type: ignore[untyped-decorator]
def first_inputs(start, BLOCK_K: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first input of each part of a strip, as a dimension of the sums of `multiplied`."""
    return start if PARTS == 1 else start + tl.arange(0, PARTS)[:, None, None] * (BLOCK_K // PARTS)


@triton.jit  # type: ignore[untyped-decorator]
def summed(acc, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``[BLOCK_M, BLOCK_N]`` of the sums of `multiplied`."""
    if PARTS == 1:
        return acc
    else:  # four parts, brought to one thread: lanes of a sum over warps would meet in banks of shared memory
        both = tl.reshape(tl.permute(acc, (2, 1, 0)), (acc.shape[2], acc.shape[1], 2, 2))
        even, odd = tl.split(both)
        one, other = tl.split(even + odd)
        return one + other


@triton.jit  # type: ignore[untyped-decorator]
def finish(acc, bias, out, m, n, rows, width, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write sums `acc` ``[m, n]`` as the reference does: rounded, and again where a bias was added."""
    made = acc.to(out.dtype.element_ty)
    if HAS_BIAS:
        added = tl.load(bias + n, mask=n < width, other=0).to(tl.float32)
        made = (made.to(tl.float32) + added[None, :]).to(out.dtype.element_ty)
    at = m.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out + at, made, mask=(m < rows)[:, None] & (n < width)[None, :])
