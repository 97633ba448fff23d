"""Attention over the paged cache: decode, parts of prompts and several tokens at once are one kernel.

A program has one tile of query rows and one key head. Rows are (token, head of the group), so that all heads that
share keys read them once (GQA packing). Keys go by tiles of `BLOCK_N`; the softmax is computed while they pass, in fp32
and to base 2 (Dao et al., arXiv 2205.14135).

Few rows over many keys would leave most of a GPU idle: then a row's keys are divided among a fixed *number* of
programs, and `splits` joins what they make (arXiv 2311.01282). `exact` launches divide them into splits of a fixed
*size*, by tiles of one shape, joined in order, within the program or after it: then a row's bits depend on nothing but
itself and its keys.

Nothing is read on the host but shapes: where the keys of a step end is not known there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _sequence_of(starts, count, at, PER_TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last sequence that begins at tile, or with PER_TILE 0 at row, `at` or before it: each sequence has its own
    tiles, and at most one more than its rows fill."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        start = tl.load(starts + middle)
        if PER_TILE:
            start = start // PER_TILE + middle
        if start <= at:
            low = middle
        else:
            high = middle
    return low


@triton.jit  # type: ignore[untyped-decorator]
def part_size(keys, parts, BLOCK_N: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of a row's keys each part has, if there are at most so many parts: whole tiles, and not few."""
    return tl.maximum(tl.cdiv(tl.cdiv(keys, parts), BLOCK_N) * BLOCK_N, LEAST)


@triton.jit
def joined(most, total, sums, next_most, next_total, next_sums):  # type: ignore[no-untyped-def]
    """Sums of earlier keys and of later ones, each relative to its own largest score."""
    top = tl.maximum(most, next_most)
    safe = tl.where(top == float("-inf"), 0.0, top)
    keep, take = tl.exp2(most - safe), tl.exp2(next_most - safe)
    return top, total * keep + next_total * take, sums * keep[:, None] + next_sums * take[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _widened(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the cache has, as the queries' dtype: fp8 by way of fp16 and fp32, for which GPUs have the fastest
    instructions."""
    if x.dtype.primitive_bitwidth > 8:
        return x.to(KIND)
    elif tl.float16 == KIND:
        return x.to(tl.float16)
    else:
        return x.to(tl.float16).to(tl.float32).to(KIND)


@triton.jit
def _as_fp16(rows):  # type: ignore[no-untyped-def]
    """Queries as fp16, and what to multiply scores by: 1, or a power of two where some are too large for it."""
    largest = tl.max(tl.max(tl.abs(rows.to(tl.float32)), 1), 0)
    lift = tl.where(largest > 32768.0, tl.exp2(tl.ceil(tl.log2(largest)) - 15.0), 1.0)
    return (rows.to(tl.float32) / lift).to(tl.float16), lift


@triton.jit  # type: ignore[untyped-decorator]
def _part(  # type: ignore[no-untyped-def]
    most, total, sums, rows, position, slope, cache, table, kv_head, begin, end, scale, soft_cap,
    block_stride, token_stride, value_offset,
    HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, ALIBI: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """Keys begin … end - 1, added to what came before. SEEN: they are whole tiles, and every row sees all of them.

    Where a tile lies is read a tile ahead, so that keys and values are on their way while the ones before are used.
    """
    channel = tl.arange(0, PADDED)
    within = tl.arange(0, BLOCK_N)
    block = tl.load(table + (begin + within) // BLOCK_SIZE, mask=begin + within < end, other=0)
    for first in range(begin, end, BLOCK_N):
        key_at = first + within
        rest = (key_at % BLOCK_SIZE) * token_stride + kv_head * HEAD
        at = cache + (block.to(tl.int64) * block_stride + rest)[:, None] + channel[None, :]
        block = tl.load(table + (key_at + BLOCK_N) // BLOCK_SIZE, mask=key_at + BLOCK_N < end, other=0)
        whole: tl.constexpr = SEEN and HEAD == PADDED
        inside = (key_at[:, None] < end) & (channel[None, :] < HEAD)
        keys = tl.load(at) if whole else tl.load(at, mask=inside, other=0.0)
        score = tl.dot(rows, tl.trans(_widened(keys, rows.dtype)), input_precision="ieee")
        factor = scale * 1.4426950408889634
        if SOFT_CAP:
            score = soft_cap * (1.0 - 2.0 / (1.0 + tl.exp2(score * (factor * 2.0 / soft_cap))))
            factor = 1.4426950408889634
        if ALIBI:
            score += slope[:, None] * (key_at[None, :] - position[:, None]).to(tl.float32)
        if not SEEN:
            seen = (key_at[None, :] <= position[:, None]) & (key_at < end)[None, :]
            if WINDOW:
                seen &= key_at[None, :] > position[:, None] - WINDOW
            score = tl.where(seen, score, float("-inf"))
        top = tl.maximum(most, tl.max(score, 1) * factor)
        safe = top if SEEN else tl.where(top == float("-inf"), 0.0, top)
        keep = tl.exp2(most - safe)
        weight = tl.exp2(score * factor - safe[:, None])
        total = total * keep + tl.sum(weight, 1)
        values = tl.load(at + value_offset) if whole else tl.load(at + value_offset, mask=inside, other=0.0)
        sums = tl.dot(weight.to(rows.dtype), _widened(values, rows.dtype), sums * keep[:, None], input_precision="ieee")
        most = top
    return most, total, sums


@triton.jit  # type: ignore[untyped-decorator]
def _over_keys(  # type: ignore[no-untyped-def]
    rows, position, first_position, slope, cache, table, kv_head, begin, end, scale, soft_cap,
    block_stride, token_stride, value_offset,
    HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, ALIBI: tl.constexpr,
):  # fmt: skip
    """Keys begin … end - 1: each row's largest score (times log2 e), its sum of weights, and of weighted values.

    No row's position is before `first_position`; scores are scaled, by a positive number, once they are compared, and
    so is `slope` given divided by it.
    """
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, PADDED], tl.float32)
    if not WINDOW:
        seen = tl.maximum(tl.minimum(first_position + 1, end) - begin, 0) // BLOCK_N * BLOCK_N
        most, total, sums = _part(
            most, total, sums, rows, position, slope, cache, table, kv_head, begin, begin + seen, scale, soft_cap,
            block_stride, token_stride, value_offset,
            HEAD, PADDED, BLOCK_SIZE, BLOCK_N, WINDOW, SOFT_CAP, ALIBI, True,
        )  # fmt: skip
        begin += seen
    return _part(
        most, total, sums, rows, position, slope, cache, table, kv_head, begin, end, scale, soft_cap,
        block_stride, token_stride, value_offset,
        HEAD, PADDED, BLOCK_SIZE, BLOCK_N, WINDOW, SOFT_CAP, ALIBI, False,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def finished(most, total, sums, sink, SINKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row's result; a sink is one more logit whose share goes nowhere. Rows that see nothing become zero."""
    if SINKS:
        top = tl.maximum(most, sink * 1.4426950408889634)
        keep = tl.exp2(most - top)
        total = total * keep + tl.exp2(sink * 1.4426950408889634 - top)
        sums = sums * keep[:, None]
    return sums / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["sequences", "splits", "earlier_tiles", "table_stride"],
    do_not_specialize_on_alignment=["starts", "lengths", "tables"],
)
def attend_tile(  # type: ignore[no-untyped-def]
    query, cache, out, partial, marks, starts, lengths, tables, slopes, sinks,
    sequences, splits, earlier_tiles, scale, soft_cap, query_stride, out_stride, table_stride,
    block_stride, token_stride, value_offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr, APART: tl.constexpr,
    DECODE: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One tile of rows with one key head; APART: over one of `splits` parts of its keys, whose sums go to `partial`,
    with their `marks`: the largest score and the sum of weights. SPLIT: keys of a split, where that is fixed.

    Of prompts the last tiles, which look back on most, come first, so that no long one is left at the end.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DECODE:
        sequence, first_token, queries = tile, 0, 1
        start = tl.load(starts + sequence)
    else:
        tile = earlier_tiles + tl.num_programs(0) - 1 - tile
        sequence = _sequence_of(starts, sequences, tile, TOKENS)
        start = tl.load(starts + sequence)
        queries = tl.load(starts + sequence + 1) - start
        first_token = (tile - start // TOKENS - sequence) * TOKENS
    length = tl.load(lengths + sequence)
    first_position = length - queries + first_token
    begin, end = 0, tl.minimum(first_position + TOKENS, length)
    if WINDOW:
        begin = tl.maximum(first_position + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
    if APART:
        if SPLIT:
            begin, end = tl.maximum(begin, split * SPLIT), tl.minimum(end, (split + 1) * SPLIT)
        else:
            size = part_size(end - begin, splits, BLOCK_N, LEAST)
            begin += split * size
            end = tl.minimum(end, begin + size)
    if (first_token < queries) & (begin < end):
        row = tl.arange(0, BLOCK_M)
        token = first_token + row // GROUP
        head = kv_head * GROUP + row % GROUP
        valid = (row < TOKENS * GROUP) & (token < queries)
        position = length - queries + token
        channel = tl.arange(0, PADDED)
        inside = valid[:, None] & (channel[None, :] < HEAD)
        at = (start + token).to(tl.int64)
        rows = tl.load(
            query + at[:, None] * query_stride + head[:, None] * HEAD + channel[None, :], mask=inside, other=0.0
        )
        if cache.dtype.element_ty.primitive_bitwidth == 8 and rows.dtype == tl.bfloat16 and SPLIT == 0:
            rows, lift = _as_fp16(rows)  # which holds all that the cache has, and takes half the conversions
            scale *= lift
        slope = tl.load(slopes + head, mask=valid, other=0.0) / (1.0 if SOFT_CAP else scale) if ALIBI else 0.0
        table = tables + sequence.to(tl.int64) * table_stride
        if SPLIT > 0 and not APART:
            most = tl.full([BLOCK_M], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            sums = tl.zeros([BLOCK_M, PADDED], tl.float32)
            for low in range(begin // SPLIT * SPLIT, end, SPLIT):
                next_most, next_total, next_sums = _over_keys(
                    rows, position, first_position, slope, cache, table, kv_head,
                    tl.maximum(begin, low), tl.minimum(end, low + SPLIT), scale, soft_cap,
                    block_stride, token_stride, value_offset,
                    HEAD, PADDED, BLOCK_SIZE, BLOCK_M, BLOCK_N, WINDOW, SOFT_CAP, ALIBI,
                )  # fmt: skip
                most, total, sums = joined(most, total, sums, next_most, next_total, next_sums)
        else:
            most, total, sums = _over_keys(
                rows, position, first_position, slope, cache, table, kv_head, begin, end, scale, soft_cap,
                block_stride, token_stride, value_offset,
                HEAD, PADDED, BLOCK_SIZE, BLOCK_M, BLOCK_N, WINDOW, SOFT_CAP, ALIBI,
            )  # fmt: skip
        if APART:
            part = (at * HEADS + head) * splits + split
            tl.store(marks + 2 * part, most, mask=valid)
            tl.store(marks + 2 * part + 1, total, mask=valid)
            tl.store(partial + part[:, None] * PADDED + channel[None, :], sums, mask=inside)
        else:
            sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) if SINKS else 0.0
            result = finished(most, total, sums, sink, SINKS)
            to = out + at[:, None] * out_stride + head[:, None] * HEAD + channel[None, :]
            tl.store(to, result.to(out.dtype.element_ty), mask=inside)
