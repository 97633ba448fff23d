"""From logits to ids without leaving the device: the largest of each row, and draws from all of it.

Both divide a row among programs, read it once, and compute in fp32. `draws` truncates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, power_of_2
from .variants import ROUNDED, Variant

_SPLIT = 8192
_DRAW_SPLIT = 2048
_MANY = 1 << 31


@triton.jit
def ordered(x):  # type: ignore[no-untyped-def]
    """fp32 numbers as uint32 of the same order, NaN above all."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    keys = tl.where(bits < 0x80000000, bits | 0x80000000, bits ^ 0xFFFFFFFF)
    return tl.where(x == x, keys, 0xFFFFFFFF)


@triton.jit  # type: ignore[untyped-decorator]
def best_of(keys, ids, MANY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest key and the lowest id that has it."""
    largest = tl.max(keys, 0)
    return largest, tl.min(tl.where(keys == largest, ids, MANY), 0)


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _best_of_split(logits, keys, ids, width, stride, splits, SPLIT: tl.constexpr, MANY: tl.constexpr):  # type: ignore[no-untyped-def]
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * SPLIT + tl.arange(0, SPLIT)
    x = tl.load(logits + row * stride + at, mask=at < width, other=float("-inf")).to(tl.float32)
    mine = tl.where(at < width, ordered(x).to(tl.int64), -1)
    key, best = best_of(mine, at.to(tl.int64), MANY)
    tl.store(keys + row * splits + part, key)
    tl.store(ids + row * splits + part, best)


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _best_of_row(keys, ids, out, splits, SPLITS: tl.constexpr, MANY: tl.constexpr):  # type: ignore[no-untyped-def]
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, SPLITS)
    mine = tl.load(keys + row * splits + at, mask=at < splits, other=-1)
    found = tl.load(ids + row * splits + at, mask=at < splits, other=MANY)
    _, best = best_of(mine, found, MANY)
    tl.store(out + row, best)


def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """As `bestiary.nn.ops.sampling.best_tokens`; the lowest id wins a tie."""
    rows, width = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    splits = cdiv(width, _SPLIT)
    keys = torch.empty(rows, splits, dtype=torch.int64, device=logits.device)
    ids, best = torch.empty_like(keys), torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        _best_of_split[rows, splits](
            logits, keys, ids, width, logits.stride(0), splits, SPLIT=_SPLIT, MANY=_MANY, num_warps=8
        )
        _best_of_row[rows,](keys, ids, best, splits, SPLITS=power_of_2(splits), MANY=_MANY, num_warps=1)
    return logits.gather(1, best.unsqueeze(1)).squeeze(1), best


@triton.jit
def scaled(logits, at, width, temperature):  # type: ignore[no-untyped-def]
    """Logits `at` of a row by its temperature, fp32; minus infinity beyond its `width`."""
    x = tl.load(logits + at, mask=at < width, other=float("-inf")).to(tl.float32)
    return tl.div_rn(x, temperature)


@triton.jit
def noise(seed, position, ids):  # type: ignore[no-untyped-def]
    """``log(E)``, as the reference makes it."""
    zero = ids * 0
    low = (position & 0xFFFFFFFF).to(tl.uint32) + zero
    high = (position >> 32 & 0xFFFFFFFF).to(tl.uint32) + zero
    bits, _, _, _ = tl.philox(seed, ids, low, high, zero)
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.999999940395355225)
    series = uniform * (1 + uniform * (0.5 + uniform * 0.3333333333333333))
    return tl.log(tl.where(uniform < 0.00390625, series, -tl.log(1 - uniform)))


@triton.jit(
    do_not_specialize=["splits", "first"], do_not_specialize_on_alignment=["seeds", "positions", "temperatures"]
)  # type: ignore[untyped-decorator]
def _draw_of_split(  # type: ignore[no-untyped-def]
    logits, seeds, positions, temperatures, scores, ids, width, stride, splits, first,
    SPLIT: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * SPLIT + tl.arange(0, SPLIT)
    temperature = tl.load(temperatures + row)
    greedy = temperature == 0
    x = scaled(logits + row * stride, at, width, tl.where(greedy, 1.0, temperature))
    broken = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), 0)
    drawn = x - noise(tl.load(seeds + row), tl.load(positions + row), (at + first).to(tl.uint32))
    mine = tl.where(at < width, tl.where(greedy, x, drawn), float("-inf"))
    mine = tl.where(mine == mine, mine, float("-inf"))
    score, best = best_of(mine, at.to(tl.int64) + first, MANY)
    tl.store(scores + row * splits + part, tl.where(broken > 0, float("nan"), score))
    tl.store(ids + row * splits + part, best)


def draw_from_part(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperature: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """As `bestiary.nn.ops.sampling.draw_from_part`; reads the logits once."""
    rows, width = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    splits = cdiv(width, _DRAW_SPLIT)
    scores = torch.empty(rows, splits, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, splits, dtype=torch.int64, device=logits.device)
    if rows:
        _draw_of_split[rows, splits](
            logits, seeds, positions, temperature, scores, ids, width, logits.stride(0), splits, first,
            SPLIT=_DRAW_SPLIT, MANY=_MANY, num_warps=8, **ROUNDED,  # whichever kernel draws a row makes the same noise
        )  # fmt: skip
    best, part = scores.max(1)
    return best, ids.gather(1, part.unsqueeze(1)).squeeze(1)


def variants() -> Iterator[Variant]:
    sizes = {"width": "i32", "stride": "i32"}
    for dtype in ("*fp32", "*bf16", "*fp16"):
        pointers = {"logits": dtype, "keys": "*i64", "ids": "*i64"}
        constants = {"SPLIT": _SPLIT, "MANY": _MANY}
        yield Variant(_best_of_split, pointers | sizes | {"splits": "i32"}, constants, 8, divisible=("width", "stride"))
        constants = {"SPLIT": _DRAW_SPLIT, "MANY": _MANY}
        of_split = {"logits": dtype, "seeds": "*i64", "positions": "*i64", "temperatures": "*fp32", "scores": "*fp32"}
        of_split |= {"ids": "*i64"} | sizes | {"splits": "i32", "first": "i32"}
        yield Variant(_draw_of_split, of_split, constants, 8, options=ROUNDED, divisible=("width", "stride"))
    of_row = dict.fromkeys(("keys", "ids", "out"), "*i64") | {"splits": "i32"}
    yield Variant(_best_of_row, of_row, {"SPLITS": 32, "MANY": _MANY}, 1)
