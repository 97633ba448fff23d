"""What products of tiles have in common: which tile a program has, and how its sums are written."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def tile_at(pid, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of the `pid`-th program: `GROUP_M` row tiles beside one another, then the next columns."""
    tall, wide = (rows + BLOCK_M - 1) // BLOCK_M, (width + BLOCK_N - 1) // BLOCK_N
    first = pid // (GROUP_M * wide) * GROUP_M
    height = min(tall - first, GROUP_M)
    within = pid % (GROUP_M * wide)
    return first + within % height, within // height


@triton.jit  # type: ignore[untyped-decorator]
def finish(acc, bias, out, m, n, rows, width, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write sums `acc` ``[m, n]`` as the reference does: rounded, and again where a bias was added."""
    made = acc.to(out.dtype.element_ty)
    if HAS_BIAS:
        added = tl.load(bias + n, mask=n < width, other=0).to(tl.float32)
        made = (made.to(tl.float32) + added[None, :]).to(out.dtype.element_ty)
    at = m.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out + at, made, mask=(m < rows)[:, None] & (n < width)[None, :])
