"""Mixture of experts: pairs of tokens and experts sorted by expert on the device, two grouped products, one sum.

Nothing waits for the device: `sorting.Tiles` have fixed shapes, and as many tiles are launched as there could be at
most.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops.moe import ACTIVATIONS, Activation

from .activation import GELU, GELU_TANH, SILU, activated, gelu_and_mul, silu_and_mul
from .sizes import cdiv
from .sorting import places_of, sort_by_expert, tiles_by_expert
from .variants import Variant

_KINDS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH}
_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
_COMBINE = 1024
_A_TOKENS = 16
_MANY = 64
"""Pairs an expert on average, beyond which its product is bound by arithmetic."""


@triton.jit  # type: ignore[untyped-decorator]
def _gate_up(  # type: ignore[no-untyped-def]
    x, w13, out, order, starts, experts, firsts, count, width, hidden, top_k, x_stride,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """A tile of ``act(x gate) * (x up)`` of one expert, into places of `order`; rounded where the reference rounds."""
    expert = tl.load(experts + tl.program_id(1))
    if (expert < 0) | (expert >= count):
        return
    place, held, pair = places_of(order, starts, firsts, expert, tl.arange(0, ROWS))
    token = pair // top_k
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < width
    gates = w13 + expert * 2 * width * hidden + column.to(tl.int64)[None, :] * hidden
    ups = w13 + (expert * 2 + 1) * width * hidden + column.to(tl.int64)[None, :] * hidden
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, hidden, STRIP):
        k = start + tl.arange(0, STRIP)
        inside = k < hidden
        left = tl.load(x + token[:, None] * x_stride + k[None, :], mask=held[:, None] & inside[None, :], other=0.0)
        mask = within[None, :] & inside[:, None]
        gate = tl.dot(left, tl.load(gates + k[:, None], mask=mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(left, tl.load(ups + k[:, None], mask=mask, other=0.0), up, input_precision="ieee")
    kind = out.dtype.element_ty
    active = activated(gate.to(kind).to(tl.float32), KIND, kind).to(kind).to(tl.float32)
    result = active * up.to(kind).to(tl.float32)
    at = out + place[:, None] * width + column[None, :]
    tl.store(at, result.to(kind), mask=held[:, None] & within[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _down(  # type: ignore[no-untyped-def]
    inner, w2, out, order, starts, experts, firsts, count, hidden, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's second product, from places of `order` to pairs; rounded as the reference's."""
    expert = tl.load(experts + tl.program_id(1))
    if (expert < 0) | (expert >= count):
        return
    place, held, pair = places_of(order, starts, firsts, expert, tl.arange(0, ROWS))
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < hidden
    weight = w2 + expert * hidden * width + column.to(tl.int64)[None, :] * width
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, STRIP):
        k = start + tl.arange(0, STRIP)
        inside = k < width
        left = tl.load(inner + place[:, None] * width + k[None, :], mask=held[:, None] & inside[None, :], other=0.0)
        right = tl.load(weight + k[:, None], mask=within[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(left, right, sums, input_precision="ieee")
    at = out + pair[:, None] * hidden + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=held[:, None] & within[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _combine(pairs, weights, slots, out, hidden, top_k, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A strip of one token: its experts' answers by weight, added in the order of its slots in fp32, rounded once."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = at < hidden
    sums = tl.zeros([BLOCK], tl.float32)
    for place in range(top_k):
        pair = token * top_k + place
        here = tl.load(slots + pair) >= 0
        answer = tl.load(pairs + pair * hidden + at, mask=within & here, other=0.0).to(tl.float32)
        share = tl.load(weights + pair)
        sums = tl.where(here, sums + answer * share, sums)
    tl.store(out + token * hidden + at, sums.to(out.dtype.element_ty), mask=within)


def kind_of(activation: Activation) -> int | None:
    """What kernels call an activation between two products; None where they do not know it."""
    return next((kind for name, kind in _KINDS.items() if ACTIVATIONS[name] is activation), None)


def why_not_grouped_mm(x: Tensor, w2: Tensor, pairs: int) -> str | None:
    """None where torch's grouped product is the faster one, from what the host knows: elsewhere it waits for the
    device, or its tiles of 64 rows and more would be half empty."""
    count, hidden, width = w2.shape
    if pairs <= _MANY * count:
        return "for many tokens an expert"
    if not x.is_cuda or x.dtype is not torch.bfloat16 or hidden % 8 or width % 8:
        return "for bfloat16 on CUDA, in rows of whole 16 bytes"
    if not hasattr(F, "grouped_mm") or torch.cuda.get_device_capability(x.device)[0] not in (9, 10):
        return "for GPUs of compute capability 9 and 10, by a torch that has grouped_mm"
    return None


def pairs_by_grouped_mm(x: Tensor, w13: Tensor, w2: Tensor, slots: Tensor, activation: str) -> Tensor:
    """What each pair's expert makes of its token, ``[tokens * k, hidden]``, by `torch.nn.functional.grouped_mm`; rows
    of absent experts hold anything. Rounded where the reference rounds."""
    count, top_k, pairs = len(w2), slots.shape[1], slots.numel()
    order, starts, *_ = sort_by_expert(slots.contiguous(), count, pairs)
    ends = starts[1:].int()
    places = F.pad(order // top_k, (0, 1))  # a row more than any group has: the last must end before the rows do
    inner = F.grouped_mm(x[places], w13.transpose(1, 2), offs=ends)
    act = silu_and_mul(inner) if activation == "silu" else gelu_and_mul(inner, _APPROXIMATE[activation])
    made = F.grouped_mm(act, w2.transpose(1, 2), offs=ends)
    return torch.empty_like(made[:pairs]).index_copy_(0, order, made[:pairs])


def combine(pairs: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
    """``[tokens * k, hidden]`` and contiguous ``[tokens, k]`` → ``[tokens, hidden]``."""
    (tokens, top_k), hidden = slots.shape, pairs.shape[1]
    out = torch.empty(tokens, hidden, dtype=pairs.dtype, device=pairs.device)
    _combine[tokens, cdiv(hidden, _COMBINE)](pairs, weights, slots, out, hidden, top_k, BLOCK=_COMBINE)
    return out


def fused_experts(
    x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, slots: Tensor, activation: str, *, exact: bool = False
) -> Tensor:
    """As `bestiary.nn.ops.moe.fused_experts`; a token's answers are added in the order of its slots. Where it is to be
    `exact`, all are computed in tiles of one shape, so that their bits do not depend on other tokens."""
    (count, hidden, width), top_k = w2.shape, slots.shape[1]
    if not x.numel():
        return torch.empty_like(x)
    x = x if x.stride(1) == 1 else x.contiguous()
    w13, w2, slots, weights = (each.contiguous() for each in (w13, w2, slots, weights))
    if not exact and why_not_grouped_mm(x, w2, slots.numel()) is None:
        return combine(pairs_by_grouped_mm(x, w13, w2, slots, activation), weights, slots)
    rows, columns, strip, warps, stages = _tile(1 << 30 if exact else slots.numel(), count, x.dtype)
    found = tiles_by_expert(slots, count, rows)
    inner = torch.empty(slots.numel(), width, dtype=x.dtype, device=x.device)
    pairs = torch.empty(slots.numel(), hidden, dtype=x.dtype, device=x.device)
    tile = {"ROWS": rows, "COLUMNS": columns, "STRIP": strip, "num_warps": warps, "num_stages": stages}
    _gate_up[cdiv(width, columns), len(found.experts)](
        x, w13, inner, *found, count, width, hidden, top_k, x.stride(0), KIND=_KINDS[activation], **tile
    )  # fmt: skip
    _down[cdiv(hidden, columns), len(found.experts)](inner, w2, pairs, *found, count, hidden, width, **tile)
    return combine(pairs, weights, slots)


def _tile(pairs: int, experts: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Rows, columns, inner strip, warps, stages: tiles as high as an expert has rows on average, at least 16.

    Few rows are bound by the weights' bytes, and want narrow tiles so that there are enough of them: a single token's
    few experts want narrower and deeper ones.
    """
    if dtype is torch.float32:
        return 16, 32, 32, 4, 2
    if pairs <= _A_TOKENS:
        return 16, 32, 128, 4, 3
    if pairs <= 16 * experts:
        return 16, 64, 64, 4, 3
    return 64, 64, 64, 4, 3


def variants() -> Iterator[Variant]:
    numbers = ("count", "width", "hidden", "top_k", "x_stride")
    sizes = ("hidden", "width", "x_stride")
    lists = dict.fromkeys(("order", "starts", "experts", "firsts", "slots"), "*i64")
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        signature = dict.fromkeys(("x", "w13", "w2", "inner", "pairs", "out"), kind)
        signature |= lists | dict.fromkeys(numbers, "i32") | {"weights": "*fp32"}
        for pairs in (1, 17, 4096) if dtype is not torch.float32 else (16,):
            rows, columns, strip, warps, stages = _tile(pairs, 8, dtype)
            tile: dict[str, object] = {"ROWS": rows, "COLUMNS": columns, "STRIP": strip}
            tile |= dict.fromkeys(("order", "starts", "firsts")) if pairs == 1 else {}
            yield Variant(_gate_up, signature, {"KIND": _KINDS["silu"], **tile}, warps, stages, divisible=sizes)
            yield Variant(_down, signature, tile, warps, stages, divisible=sizes[:2])
        yield Variant(_combine, signature, {"BLOCK": _COMBINE}, divisible=sizes[:1])
