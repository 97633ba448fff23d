"""Codes for weights, decoded in registers: a strip of inputs of many outputs, for the layouts of `nn.ops.quant`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.api.ggml_types import GgmlType

from . import available
from .bits import nibbles_of, words
from .gguf_blocks import decoded
from .tables import looked_up

DEEPEST = 128
"""The deepest strip of a tile: groups of as many are scaled after they are multiplied."""


@triton.jit  # type: ignore[untyped-decorator]
def numbers_of(weight, k, within, CODES: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the codes of inputs `k` say, one in an element, fp32; `weight` is where rows begin. "fp8" is e4m3 on GPUs
    that have instructions for it (`e4m3_for`)."""
    if CODES == "fp8":
        bits = tl.load(weight + k, mask=within, other=0)
        return bits.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    elif CODES == "e4m3":
        # Exponent and mantissa lie in the upper bits of an fp16 whose exponent counts from 15 instead of 7.
        bits = tl.load(weight + k, mask=within, other=0).to(tl.int32)
        half = ((bits & 128) << 8 | (bits & 127) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        return half.to(tl.float32) * 256
    else:
        return tl.load(weight + k, mask=within, other=0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _pairs(weight, first, there, row_bytes, SIZE: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two codes a byte: those of the 32 inputs from each `first` on, as words ``[n, groups, 4]``."""
    word = first // 8 + tl.arange(0, 4)[None, None, :]
    if SIZE == 4:
        return words(weight + first // 2, there if EVEN else there & (word < row_bytes // 4), 4, 4)
    else:
        made = word & 0
        for byte in tl.static_range(4):
            at = word * 4 + byte
            made |= tl.load(weight + at, mask=there & (at < row_bytes), other=0).to(tl.int32) << (8 * byte)
        return made


@triton.jit  # type: ignore[untyped-decorator]
def _zeros(zero, at, within, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes as fp32, read in words of four where they are, since what is narrower is not copied ahead."""
    if SIZE == 4:
        word = words(zero + (at >> 2) * 4, within, 1, 4)
        return ((word >> ((at & 3) * 8).to(tl.int32)) & 255).to(tl.float32)
    else:
        return tl.load(zero + at, mask=within, other=0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(  # type: ignore[no-untyped-def]
    weight, scale, zero, table, outputs, there, start, depth, groups, group_size, weight_stride, nothing,
    CODES: tl.constexpr, SCALES: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """As `strip`, of what is not in blocks."""
    GROUP: tl.constexpr = 32 if BLOCK_K >= 32 else BLOCK_K
    first, j = tl.arange(0, BLOCK_K // GROUP)[None, :, None] * GROUP, tl.arange(0, GROUP)[None, None, :]
    k = start + first + j
    rows = weight + outputs * weight_stride
    EACH: tl.constexpr = SCALES == "any"
    group = (start + first) // group_size
    within = there if EVEN else there & (start + first < depth)
    if EACH:
        within = there & (k < depth)
        group = k // group_size
    less = 0.0
    if zero is not None:
        less = _zeros(zero, outputs * groups + group, within, 1 if EACH else SIZE)
    if CODES == "int4":
        pairs = _pairs(rows, start + first, there, weight_stride, SIZE, EVEN)
        numbers = nibbles_of(pairs, nothing, 0.0 if EACH else less)
        if EACH:
            numbers -= less
    elif CODES == "codebook":
        numbers = looked_up(table, _pairs(rows, start + first, there, weight_stride, SIZE, EVEN))
    else:
        numbers = numbers_of(rows, k, there if EVEN else there & (k < depth), CODES)
        if zero is not None:
            numbers -= less
    if SCALES == "even" or EACH:
        numbers *= tl.load(scale + outputs * groups + group, mask=within, other=0)
    return numbers


@triton.jit  # type: ignore[untyped-decorator]
def strip(  # type: ignore[no-untyped-def]
    weight, scale, zero, table, outputs, there, start, side, depth, groups, group_size, weight_stride, nothing,
    CODES: tl.constexpr, SCALES: tl.constexpr, BLOCK_K: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The weights of `outputs` (int64 ``[n, 1, 1]``, where `there`) at `BLOCK_K` inputs from `start`, as fp32
    ``[n, …]``, in the order of the inputs.

    `CODES`: "int4", "uint8", "int8", "e4m3", "fp8", "codebook", "plain" numbers, or a GGUF type. `SCALES`: "row" or
    "apart" (groups of whole strips of 64), which whoever multiplies applies, codes being less their zeros; "even"
    groups of whole 32 inputs; "any" groups; "blocks" of GGUF, `weight_stride` bytes a row; "none". `SIZE`, `EVEN`,
    `side` and `nothing`, a 0, are as in `gguf_blocks`; `SIZE` is 1 where rows, or all zeros together, are of no whole
    words.
    """
    if SCALES == "blocks":
        rows = (weight + outputs * weight_stride,)
        return decoded(rows, start, side, depth, there, nothing, CODES, BLOCK_K, SIZE, EVEN, False)
    else:
        return _numbers(
            weight, scale, zero, table, outputs, there, start, depth, groups, group_size, weight_stride, nothing,
            CODES, SCALES, BLOCK_K, SIZE, EVEN,
        )  # fmt: skip


def e4m3_for(device: torch.device) -> str:
    """The `CODES` of e4m3 numbers on a device: GPUs have instructions for them from capability 8.9 on."""
    return "fp8" if available.capability_of(device) >= 89 else "e4m3"


def word_size(codes: str, weight: Tensor, zero: Tensor | None = None) -> int:
    """The `SIZE` of words: four where all of them are at multiples of four, otherwise what every layout is of."""
    kind = GgmlType.__members__.get(codes)
    size = weight.shape[-1] if kind is None else kind.type_size
    whole = size % 4 == 0 and weight.data_ptr() % 4 == 0
    if zero is not None:
        whole &= zero.numel() % 4 == 0 and zero.data_ptr() % 4 == 0
    return 4 if whole else 1 if kind is None else 2


def scales_of(group_size: int, groups: int, *, whole: bool = True) -> str:
    """The `SCALES` of codes in groups; `whole`: codes less their zeros are numbers that every dtype holds."""
    if whole and groups == 1:
        return "row"
    if group_size % 32 and groups > 1:
        return "any"
    return "apart" if whole and group_size % DEEPEST == 0 else "even"
