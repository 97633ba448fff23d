"""Experts of any kind: two products of sorted pairs, with biases, weights that are codes, and rounded activations.

`stacked` says what products are to the kernel; `moe` sorts, and adds a token's answers. Codes are decoded in registers
and rounded to the dtype of `x`; rounded activations are multiplied as what their codes say, and scaled afterwards, in
fp32. As for one layer, that is more exact than the reference in bf16, and in fp16 less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops import moe as reference
from bestiary.nn.ops.moe import Activation
from bestiary.nn.ops.product import Product

from .activation import SILU, activated
from .codes import numbers_of, strip, word_size
from .lanes import arranged, inputs_read, outputs_read, rows_read, strips_from
from .moe import combine, kind_of
from .shapes import Tile, tile_of
from .sizes import cdiv
from .sorting import Tiles, places_of, tiles_by_expert
from .stacked import inputs_of, weights_of, why_not
from .tables import table_of
from .tiles import first_inputs, multiplied, no_sums, of_outputs, of_rows, summed
from .variants import Variant

_WIDE = 32
"""Outputs of a tile of which gates and ups are half."""


@triton.jit  # type: ignore[untyped-decorator]
def _added(  # type: ignore[no-untyped-def]
    acc, left, steps, weight, scale, zero, table, source, held, first_output, tile, width, start, depth,
    step_groups, groups, group_size, weight_stride, nothing,
    CODES: tl.constexpr, SCALES: tl.constexpr, X: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STRIP: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sums with the products of a strip of inputs, for a tile of the `width` outputs from `first_output` on; "apart"
    scales by their groups and by those of the activations."""
    read = tile * COLUMNS + outputs_read(COLUMNS, PARTS, UNIT)
    first, side = strips_from(start, COLUMNS, STRIP, PARTS, UNIT)
    numbers = strip(
        weight, scale, zero, table, first_output + read.to(tl.int64), read < width, first, side, depth, groups,
        group_size, weight_stride, nothing, CODES, SCALES, UNIT if UNIT else STRIP, SIZE, EVEN,
    )  # fmt: skip
    if SCALES == "apart":
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        group = first_inputs(start, STRIP, PARTS) // group_size
        by_at = of_outputs(first_output + column.to(tl.int64), PARTS) * groups + tl.minimum(group, groups - 1)
        by = tl.load(scale + by_at, mask=of_outputs(column < width, PARTS), other=0)
        part = multiplied(left, numbers, no_sums(ROWS, COLUMNS, PARTS), COLUMNS, STRIP, PARTS, UNIT) * by
        if X != "plain":
            step_at = of_rows(source, PARTS) * step_groups + tl.minimum(group, step_groups - 1)
            part *= tl.load(steps + step_at, mask=of_rows(held, PARTS), other=0)
        acc += part
    else:
        acc = multiplied(left, numbers, acc, COLUMNS, STRIP, PARTS, UNIT)
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def _activations(  # type: ignore[no-untyped-def]
    x_at, shifts_at, inputs_at, k, held, depth, kind: tl.constexpr, X: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """What columns `k` of weights are multiplied by, of rows that begin at `x_at`, where they are `held`, as numbers of
    that `kind`."""
    there = held if EVEN else held & (k < depth)
    if inputs_at is not None:
        k = tl.load(inputs_at + k, mask=k < depth, other=0)
    if X == "plain":
        return tl.load(x_at + k, mask=there, other=0)
    else:
        number = numbers_of(x_at, k, there, X)
        if shifts_at is not None:
            number -= tl.load(shifts_at, mask=held, other=0).to(tl.float32)
        return number.to(kind)


@triton.jit  # type: ignore[untyped-decorator]
def _made(  # type: ignore[no-untyped-def]
    acc, steps, scale, bias, source, held, output, within, kind: tl.constexpr,
    SCALES: tl.constexpr, X: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Sums as the outputs that they are, rounded to `kind`."""
    sums = summed(acc, PARTS)
    if X != "plain" and SCALES != "apart":
        sums *= tl.load(steps + source, mask=held, other=0)[:, None]
    if SCALES == "row":
        sums *= tl.load(scale + output, mask=within, other=0)[None, :]
    made = sums.to(kind)
    if bias is not None:
        added = tl.load(bias + output, mask=within, other=0).to(tl.float32)
        made = (made.to(tl.float32) + added[None, :]).to(kind)
    return made


@triton.jit  # type: ignore[untyped-decorator]
def _experts(  # type: ignore[no-untyped-def]
    x, steps, shifts, weight, scale, zero, codebook, inputs, bias, out, order, starts, experts, firsts,
    count, width, depth, top_k, step_groups, groups, group_size, x_stride, weight_stride,
    CODES: tl.constexpr, SCALES: tl.constexpr, X: tl.constexpr, BY_TOKEN: tl.constexpr, TO_PAIRS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr,
    SIZE: tl.constexpr, EVEN: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's product. Inputs are rows of tokens or of places in `order`; outputs go to places or pairs.

    `X`: "plain", or the codes that activations are, "e4m3", "fp8" or "int8", with `steps` ``[rows, step_groups]`` and
    maybe `shifts` ``[rows]``. `SCALES` as in `codes.strip`, `UNIT` as in `lanes`. `ACT`: None, or the kind of
    activation, and `width` is that of gates and of ups, of which a weight has first the ones and then the others:
    ``act(gate) * up``. `inputs`: None, or ``[experts, depth]``, which input each column of a weight multiplies.
    """
    expert = tl.load(experts + tl.program_id(1))
    if (expert < 0) | (expert >= count):
        return
    place, held, pair = places_of(order, starts, firsts, expert, tl.arange(0, ROWS))
    source = pair // top_k if BY_TOKEN else place
    read_place, read, read_pair = places_of(order, starts, firsts, expert, rows_read(ROWS, STRIP, PARTS, UNIT))
    read_source = read_pair // top_k if BY_TOKEN else read_place
    x_at, shifts_at = x + read_source * x_stride, shifts if shifts is None else shifts + read_source
    tile, column = tl.program_id(0), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first_output, within = expert * (width if ACT is None else 2 * width), column < width
    output = first_output + column.to(tl.int64)
    kind: tl.constexpr = out.dtype.element_ty
    table = table_of(codebook if codebook is None else codebook + expert * 16)
    inputs_at = inputs if inputs is None else inputs + expert * depth
    acc, nothing = no_sums(ROWS, COLUMNS, PARTS), tl.minimum(width, 0)
    up = no_sums(ROWS, COLUMNS, PARTS)
    for start in range(0, depth, STRIP):
        k = inputs_read(start, ROWS, STRIP, PARTS, UNIT)
        left = arranged(
            _activations(x_at, shifts_at, inputs_at, k, read, depth, kind, X, EVEN), ROWS, STRIP, PARTS, UNIT
        )
        acc = _added(
            acc, left, steps, weight, scale, zero, table, source, held, first_output, tile, width, start,
            depth, step_groups, groups, group_size, weight_stride, nothing,
            CODES, SCALES, X, ROWS, COLUMNS, STRIP, PARTS, UNIT, SIZE, EVEN,
        )  # fmt: skip
        if ACT is not None:
            up = _added(
                up, left, steps, weight, scale, zero, table, source, held, first_output + width, tile, width,
                start, depth, step_groups, groups, group_size, weight_stride, nothing,
                CODES, SCALES, X, ROWS, COLUMNS, STRIP, PARTS, UNIT, SIZE, EVEN,
            )  # fmt: skip
    made = _made(acc, steps, scale, bias, source, held, output, within, kind, SCALES, X, PARTS)
    if ACT is not None:
        other = _made(up, steps, scale, bias, source, held, output + width, within, kind, SCALES, X, PARTS)
        active = activated(made.to(tl.float32), ACT, kind).to(kind).to(tl.float32)
        made = (active * other.to(tl.float32)).to(kind)
    row = pair if TO_PAIRS else place
    tl.store(out + row[:, None] * width + column[None, :], made, mask=held[:, None] & within[None, :])


def grouped_experts(
    x: Tensor, first: Product, second: Product, weights: Tensor, slots: Tensor, activation: Activation, *,
    exact: bool = False,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.moe.grouped_experts`, which computes the products that the kernel does not take."""
    if why_not(first) is not None or why_not(second) is not None:
        return reference.grouped_experts.reference(x, first, second, weights, slots, activation)
    top_k, count = slots.shape[1], len(first.tensors["weight"])
    if not x.numel():
        return torch.empty_like(x)
    slots, weights = slots.contiguous(), weights.contiguous()
    one, two = _tiles(first, second, x, -(-slots.numel() // count), exact)
    found = tiles_by_expert(slots, count, one.block_m)
    inner, active = _product(x, first, found, count, top_k, one, kind_of(activation))
    answers, _ = _product(inner if active else activation(inner), second, found, count, None, two)
    return combine(answers, weights, slots)


def _tiles(first: Product, second: Product, x: Tensor, pairs: int, exact: bool) -> tuple[Tile, Tile]:
    """Of two products, as high as each other, where experts have as many `pairs` on average: tiles of eight rows only
    where they are half empty all the same, since what is in two tiles is decoded twice."""
    for rows in (8 if pairs <= 4 else 16 if pairs <= 16 else 64, 16):
        one, two = (
            tile_of(each.codes, each.scales, rows, x.dtype, exact)
            for each in (weights_of(first, x.shape[1]), weights_of(second, x.shape[1]))
        )  # fmt: skip
        if one.block_m == two.block_m:
            break
    return one, two


def _product(
    x: Tensor, product: Product, found: Tiles, count: int, top_k: int | None, tile: Tile, kind: int | None = None
) -> tuple[Tensor, bool]:  # fmt: skip
    """Of tokens, for each place; or of places, for each pair. And whether the activation of that `kind` was applied:
    where tiles are wide enough for two of half as many outputs."""
    x = x if x.stride(1) == 1 else x.contiguous()
    given, by_token = inputs_of(x, product, found, top_k)
    held = weights_of(product, x.shape[1])
    kind, width = (kind, held.width // 2) if kind is not None and tile.block_n >= _WIDE else (None, held.width)
    tile = tile if kind is None else tile._replace(block_n=tile.block_n // 2)
    out = torch.empty(found.pairs, width, dtype=x.dtype, device=x.device)
    groups = 1 if given.steps is None or given.steps.dim() == 1 else given.steps.shape[1]
    depth = x.shape[1] if held.order is None else held.order.shape[1]
    _experts[cdiv(width, tile.block_n), len(found.experts)](
        given.x, given.steps, given.shifts, held.weight, held.scale, held.zero, held.codebook, held.order,
        held.bias, out, *found, count, width, depth, top_k or 1, groups, held.groups, held.group_size,
        given.x.stride(0), held.row_stride,
        CODES=held.codes, SCALES=held.scales, X=given.kind, BY_TOKEN=by_token, TO_PAIRS=top_k is None,
        ROWS=tile.block_m, COLUMNS=tile.block_n, STRIP=tile.block_k, PARTS=tile.parts, UNIT=tile.unit,
        SIZE=word_size(held.codes, held.weight, held.zero), EVEN=depth % tile.block_k == 0,
        ACT=kind, num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return out, kind is not None


_KINDS = (
    ("plain", "none", "plain"), ("int8", "row", "plain"), ("int8", "row", "int8"), ("e4m3", "row", "plain"),
    ("e4m3", "even", "plain"), ("e4m3", "row", "e4m3"), ("e4m3", "apart", "e4m3"), ("fp8", "row", "plain"),
    ("fp8", "row", "fp8"), ("fp8", "apart", "fp8"), ("fp8", "apart", "plain"),
    ("int4", "even", "plain"), ("int4", "apart", "plain"), ("int4", "even", "ordered"),
    ("uint8", "even", "plain"), ("codebook", "even", "plain"), ("Q4_0", "blocks", "plain"),
    ("Q8_0", "blocks", "plain"), ("Q4_K", "blocks", "plain"), ("Q6_K", "blocks", "plain"),
)  # fmt: skip


def variants() -> Iterator[Variant]:
    """Each kind of weight and activation in bf16: few tokens to places, gated where tiles are wide enough, and many
    places to pairs."""
    sizes = ("width", "depth", "x_stride", "weight_stride")
    numbers = dict.fromkeys((*sizes, "count", "top_k", "step_groups", "groups", "group_size"), "i32")
    lists = dict.fromkeys(("order", "starts", "experts", "firsts"), "*i64")
    for codes, scales, kind in _KINDS:
        for first, tile in (
            (True, tile_of(codes, scales, 1, torch.bfloat16)),
            (False, tile_of(codes, scales, 64, torch.bfloat16)),
        ):
            gated = first and tile.block_n >= _WIDE
            absent: dict[str, Any] = dict.fromkeys(_absent(codes, scales, kind), None)
            constants = absent | {
                "CODES": codes, "SCALES": scales, "X": "plain" if kind == "ordered" else kind, "BY_TOKEN": first,
                "TO_PAIRS": not first,
                "ROWS": tile.block_m, "COLUMNS": tile.block_n // (2 if gated else 1), "STRIP": tile.block_k,
                "PARTS": tile.parts, "UNIT": tile.unit, "SIZE": _size(codes), "EVEN": True,
                "ACT": SILU if gated else None,
            }  # fmt: skip
            types = {
                "x": {"fp8": "*u8", "e4m3": "*u8", "int8": "*i8"}.get(kind, "*bf16"),
                "steps": "*fp32",
                "shifts": "*i32",
            }
            types |= {"weight": {"plain": "*bf16", "int8": "*i8"}.get(codes, "*u8"), "scale": "*fp32", "zero": "*u8"}
            types |= {"codebook": "*fp32", "inputs": "*i32", "bias": "*bf16", "out": "*bf16"} | lists | numbers
            yield Variant(
                _experts, types, constants, tile.num_warps, tile.num_stages,
                89 if codes == "fp8" else 80, 89 if codes == "e4m3" else 1000,
                options={"enable_fp_fusion": False},
                divisible=sizes,
            )  # fmt: skip


def _size(codes: str) -> int:
    """Of words of weights that lie at multiples of 16."""
    return word_size(codes, torch.empty(16, dtype=torch.uint8))


def _absent(codes: str, scales: str, kind: str) -> Iterator[str]:
    """The pointers that are not given."""
    yield "bias"
    if scales in ("none", "blocks"):
        yield "scale"
    if codes not in ("int4", "uint8"):
        yield "zero"
    if codes != "codebook":
        yield "codebook"
    if kind != "ordered":
        yield "inputs"
    if kind in ("plain", "ordered"):
        yield "steps"
    if kind != "int8":
        yield "shifts"
