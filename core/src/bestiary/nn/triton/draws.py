"""Draws from whole rows of logits, truncated by top-k, top-p and min-p: one program a row.

What can be drawn lies near the largest logit, as a rule. So a row is read once for its largest, and once to note the
few thousand ids at most that are near it; the rest happens among these, in registers. A row where that is not known to
be enough (`_draw_near`) is read some 30 times more for each of top-k and top-p, from the L2 cache: the result is the
same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sampling import best_of, noise, ordered, scaled
from .variants import ROUNDED, Variant

_BLOCK = 4096
_ROOM = 4096
"""Ids that can be near."""
_DEPTH = 12.0
"""How far below the largest scaled logit they lie: what is less has a share of 6e-6 of the largest one's, or less."""
_MANY = 1 << 31


@triton.jit  # type: ignore[untyped-decorator]
def _weights(x, peak, floor, key, MASS: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 for each number, or its probability times a factor where it is kept so far."""
    if MASS:
        return tl.where((x >= floor) & (ordered(x) >= key), tl.exp(x - peak), 0.0)
    return tl.full(x.shape, 1.0, tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _threshold(  # type: ignore[no-untyped-def]
    logits, width, temperature, peak, floor, key, wanted, MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key at which the weights of keys no smaller sum to `wanted`, bit by bit from the top."""
    found, bit = tl.full((), 0, tl.uint32), tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        higher = found | bit
        sums = tl.full((BLOCK,), 0.0, tl.float32)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = scaled(logits, at, width, temperature)
            counted = (at < width) & (ordered(x) >= higher)
            sums += tl.where(counted, _weights(x, peak, floor, key, MASS), 0.0)
        found = tl.where(tl.sum(sums, 0) >= wanted, higher, found)
        bit = bit >> 1
    return found


@triton.jit
def _threshold_among(keys, weights, wanted):  # type: ignore[no-untyped-def]
    """The same of keys that are at hand."""
    found, bit = tl.full((), 0, tl.uint32), tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        higher = found | bit
        found = tl.where(tl.sum(tl.where(keys >= higher, weights, 0.0), 0) >= wanted, higher, found)
        bit = bit >> 1
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _peak(logits, width, temperature, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest scaled logit, and whether it and all others are numbers."""
    peaks = tl.full((BLOCK,), float("-inf"), tl.float32)
    broken = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, width, BLOCK):
        x = scaled(logits, start + tl.arange(0, BLOCK), width, temperature)
        broken |= (x != x).to(tl.int32)
        peaks = tl.maximum(peaks, x)
    peak = tl.max(peaks, 0)
    return peak, (tl.max(broken, 0) == 0) & (peak > float("-inf")) & (peak < float("inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _note_near(  # type: ignore[no-untyped-def]
    logits, near, width, temperature, peak, floor, cutoff, ROOM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the ids from `cutoff` on to `near`, as many as have room; how many there are, and the mass of all from
    `floor` on."""
    count = tl.full((), 0, tl.int32)
    mass = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = scaled(logits, at, width, temperature)
        mass += tl.where((at < width) & (x >= floor), tl.exp(x - peak), 0.0)
        here = ((at < width) & (x >= cutoff)).to(tl.int32)
        place = count + tl.cumsum(here, 0) - 1
        tl.store(near + place, at, mask=(here > 0) & (place < ROOM))
        count += tl.sum(here, 0)
    return count, tl.sum(mass, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _draw_near(  # type: ignore[no-untyped-def]
    logits, near, count, mass, temperature, peak, floor, cutoff, top_k, top_p, seed, position,
    MANY: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """The id drawn among those near, and whether it is the one that all would give: the k-th largest is near, or so is
    as much mass as is kept, or all that min-p keeps is."""
    at = tl.arange(0, ROOM)
    there = at < count
    ids = tl.load(near + at, mask=there, other=0)
    x = tl.div_rn(tl.load(logits + ids, mask=there, other=0.0).to(tl.float32), temperature)
    keys = tl.where(there, ordered(x), 0)
    enough, key = count <= ROOM, tl.full((), 0, tl.uint32)
    if top_k > 0:
        enough = enough & (count >= top_k)
        key = _threshold_among(keys, there.to(tl.float32), top_k.to(tl.float32))
    kept = there & (x >= floor) & (keys >= key)
    if top_p < 1:
        weights = tl.where(kept, tl.exp(x - peak), 0.0)
        here = tl.sum(weights, 0)
        wanted = top_p * tl.where(top_k > 0, here, mass)
        enough = enough & (here >= wanted)
        if wanted > 0:
            kept = kept & (keys >= _threshold_among(keys, weights, wanted))
    else:
        enough = enough & ((top_k > 0) | (floor >= cutoff))
    scores = tl.where(kept, x - noise(seed, position, ids.to(tl.uint32)), float("-inf"))
    _, best = best_of(scores, ids.to(tl.int64), MANY)
    return best, enough


@triton.jit  # type: ignore[untyped-decorator]
def _draw_of_all(  # type: ignore[no-untyped-def]
    logits, width, temperature, greedy, peak, floor, top_k, top_p, seed, position,
    MANY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The id drawn, by reading the row as often as it takes."""
    key = tl.full((), 0, tl.uint32)
    if (top_k > 0) & (greedy == 0):
        key = _threshold(logits, width, temperature, peak, floor, key, top_k.to(tl.float32), False, BLOCK)
    if (top_p < 1) & (greedy == 0):
        sums = tl.full((BLOCK,), 0.0, tl.float32)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = scaled(logits, at, width, temperature)
            sums += tl.where(at < width, _weights(x, peak, floor, key, True), 0.0)
        wanted = top_p * tl.sum(sums, 0)
        if wanted > 0:
            higher = _threshold(logits, width, temperature, peak, floor, key, wanted, True, BLOCK)
            key = tl.maximum(key, higher)
    scores = tl.full((BLOCK,), float("-inf"), tl.float32)
    ids = tl.full((BLOCK,), MANY, tl.int64)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = scaled(logits, at, width, temperature)
        kept = (at < width) & (x >= floor) & (ordered(x) >= key)
        mine = tl.where(kept, tl.where(greedy, x, x - noise(seed, position, at.to(tl.uint32))), float("-inf"))
        ids = tl.where(mine > scores, at.to(tl.int64), ids)
        scores = tl.maximum(scores, mine)
    _, best = best_of(scores, ids, MANY)
    return best


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize_on_alignment=["seeds", "positions", "temperatures", "top_ks", "top_ps", "min_ps"]
)
def _draw(  # type: ignore[no-untyped-def]
    logits, seeds, positions, temperatures, top_ks, top_ps, min_ps, near, out, width, stride,
    MANY: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    near += row * ROOM
    temperature = tl.load(temperatures + row)
    greedy = temperature == 0
    temperature = tl.where(greedy, 1.0, temperature)
    peak, usable = _peak(logits, width, temperature, BLOCK)
    min_p, top_k, top_p = tl.load(min_ps + row), tl.load(top_ks + row), tl.load(top_ps + row)
    seed, position = tl.load(seeds + row), tl.load(positions + row)
    floor = tl.where(min_p > 0, peak + tl.log(tl.where(min_p > 0, min_p, 1.0)), float("-inf"))
    best, done = tl.full((), -1, tl.int64), usable == 0
    if usable & (greedy == 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        cutoff = peak - DEPTH
        count, mass = _note_near(logits, near, width, temperature, peak, floor, cutoff, ROOM, BLOCK)
        tl.debug_barrier()  # what other threads of the program have noted is loaded below
        best, done = _draw_near(
            logits, near, count, mass, temperature, peak, floor, cutoff, top_k, top_p, seed, position, MANY, ROOM
        )
    if done == 0:
        best = _draw_of_all(
            logits, width, temperature, greedy, peak, floor, top_k, top_p, seed, position, MANY, BLOCK
        )  # fmt: skip
    tl.store(out + row, best)


def draw_tokens(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """As `bestiary.nn.ops.sampling.draw_tokens`."""
    rows, width = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    near = torch.empty(rows, _ROOM, dtype=torch.int32, device=logits.device)
    if rows:
        _draw[rows,](
            logits, seeds, positions, temperature, top_k, top_p, min_p, near, out, width, logits.stride(0),
            MANY=_MANY, BLOCK=_BLOCK, ROOM=_ROOM, DEPTH=_DEPTH, num_warps=16, **ROUNDED,
        )  # fmt: skip
    return out


def variants() -> Iterator[Variant]:
    types = dict.fromkeys(("temperatures", "top_ps", "min_ps"), "*fp32") | {"top_ks": "*i32", "near": "*i32"}
    types |= dict.fromkeys(("seeds", "positions", "out"), "*i64") | {"width": "i32", "stride": "i32"}
    constants = {"MANY": _MANY, "BLOCK": _BLOCK, "ROOM": _ROOM, "DEPTH": _DEPTH}
    for dtype in ("*fp32", "*bf16", "*fp16"):
        yield Variant(_draw, {"logits": dtype} | types, constants, 16, options=ROUNDED, divisible=("width", "stride"))
