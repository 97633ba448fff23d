"""Joining what programs made of parts of a row's keys, for attention's decode steps.

Here a row is a sequence: each has one query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import finished, joined, part_size


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["lengths"])  # type: ignore[untyped-decorator]
def join_splits(  # type: ignore[no-untyped-def]
    partial, marks, out, lengths, sinks, splits, out_stride,
    HEADS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr, SPLIT: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One row of one head: its splits of a fixed size, one after another."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    begin = 0
    if WINDOW:
        begin = tl.maximum(length - WINDOW, 0) // SPLIT
    channel, one = tl.arange(0, PADDED), tl.arange(0, 1)
    most = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([1, PADDED], tl.float32)
    first = (row * HEADS + head) * splits
    for split in range(begin, tl.cdiv(length, SPLIT)):
        at = first + split
        next_sums = tl.load(
            partial + at * PADDED + channel[None, :] + one[:, None], mask=channel[None, :] < HEAD, other=0
        )
        mark = marks + 2 * at + one
        most, total, sums = joined(most, total, sums, tl.load(mark), tl.load(mark + 1), next_sums)
    sink = tl.load(sinks + head + one).to(tl.float32) if SINKS else 0.0
    result = finished(most, total, sums, sink, SINKS)
    to = out + row * out_stride + head * HEAD + channel[None, :] + one[:, None]
    tl.store(to, result.to(out.dtype.element_ty), mask=channel[None, :] < HEAD)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["lengths"])  # type: ignore[untyped-decorator]
def join_parts(  # type: ignore[no-untyped-def]
    partial, marks, out, lengths, sinks, splits, out_stride,
    HEADS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK_N: tl.constexpr, LEAST: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One row of one head: the parts that its keys were divided into, `AT_ONCE` read together."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    begin = 0
    if WINDOW:
        begin = tl.maximum(length - WINDOW, 0) // BLOCK_N * BLOCK_N
    count = tl.cdiv(length - begin, part_size(length - begin, splits, BLOCK_N, LEAST))
    channel, one = tl.arange(0, PADDED), tl.arange(0, 1)
    most = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([1, PADDED], tl.float32)
    first = (row * HEADS + head) * splits
    for start in range(0, count, AT_ONCE):
        part = start + tl.arange(0, AT_ONCE)
        mark = marks + 2 * (first + part)
        tops = tl.load(mark, mask=part < count, other=float("-inf"))
        weights = tl.load(mark + 1, mask=part < count, other=0.0)
        inside = (part[:, None] < count) & (channel[None, :] < HEAD)
        values = tl.load(partial + (first + part)[:, None] * PADDED + channel[None, :], mask=inside, other=0.0)
        top = tl.max(tops, 0)
        take = tl.exp2(tops - top)
        next_sums = tl.sum(values * take[:, None], 0)[None, :]
        most, total, sums = joined(most, total, sums, top + one, tl.sum(weights * take, 0) + one, next_sums)
    sink = tl.load(sinks + head + one).to(tl.float32) if SINKS else 0.0
    result = finished(most, total, sums, sink, SINKS)
    to = out + row * out_stride + head * HEAD + channel[None, :] + one[:, None]
    tl.store(to, result.to(out.dtype.element_ty), mask=channel[None, :] < HEAD)
