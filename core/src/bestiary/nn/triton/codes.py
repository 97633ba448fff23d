"""Codes for weights, decoded in registers: a strip of inputs of many outputs, for the layouts of `nn.ops.quant`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import available
from .gguf_blocks import decoded

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
def _nibbles(weight, codebook, first, there, row_bytes, CODES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two codes a byte: bytes are read once and side by side, then taken apart. `first` ``[1, groups, 1]``, inputs."""
    i = tl.arange(0, 16)[None, None, :]
    byte = tl.load(weight + (first // 2 + i), mask=there & (first // 2 + i < row_bytes), other=0).to(tl.int32)
    pair = tl.join(byte & 15, byte >> 4)
    code = tl.reshape(pair, (pair.shape[0], pair.shape[1], 32))
    return code.to(tl.float32) if CODES == "int4" else tl.load(codebook + code)


@triton.jit  # type: ignore[untyped-decorator]
def _shifted(weight, zero, first, there, row_bytes, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of four bits less `zero` ``[n, 1, 1]``, exactly: beside the exponent of 128 in bf16, or of 1024 in fp16, a
    code's bits are that number and the code."""
    i = tl.arange(0, 16)[None, None, :]
    byte = tl.load(weight + (first // 2 + i), mask=there & (first // 2 + i < row_bytes), other=0).to(tl.int16)
    low, high = byte & 15, byte >> 4
    if tl.float32 == KIND:
        pair = tl.join(low, high)
        return tl.reshape(pair, (pair.shape[0], pair.shape[1], 32)).to(tl.float32) - zero.to(tl.float32)
    else:
        BITS: tl.constexpr = 0x6400 if tl.float16 == KIND else 0x4300
        BASE: tl.constexpr = 1024.0 if tl.float16 == KIND else 128.0
        pair = tl.join(low | BITS, high | BITS)
        code = tl.reshape(pair, (pair.shape[0], pair.shape[1], 32)).to(KIND, bitcast=True)
        return code - (zero.to(tl.float32) + BASE).to(KIND)


@triton.jit  # type: ignore[untyped-decorator]
def strip(  # type: ignore[no-untyped-def]
    weight, scale, zero, codebook, group_of, outputs, there, start, depth, groups, group_size, weight_stride,
    CODES: tl.constexpr, SCALES: tl.constexpr, HAS_ZERO: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The weights of `outputs` (int64 ``[n, 1, 1]``, where `there`) at `BLOCK_K` inputs from `start`, as fp32
    ``[n, BLOCK_K / 32, 32]``, to be rounded to `KIND`; or as `KIND`, which holds them exactly.

    `CODES`: "int4", "uint8", "int8", "e4m3", "fp8", "codebook", "plain" numbers, or a GGUF type. `SCALES`: "row" or
    "apart" (groups of whole strips), which whoever multiplies applies, codes being less their zeros; "even" groups of
    whole 32 inputs; "any" groups; "listed" as `group_of` says; "blocks" of GGUF, `weight_stride` bytes a row; "none".
    """
    first, j = tl.arange(0, BLOCK_K // 32)[None, :, None] * 32, tl.arange(0, 32)[None, None, :]
    k = start + first + j
    rows = weight + outputs * weight_stride
    if SCALES == "apart" and HAS_ZERO:
        shift = tl.load(zero + outputs * groups + start // group_size, mask=there, other=0)
    if SCALES == "blocks":
        g = (start + first) // 32
        numbers = decoded(rows, g, j, there & (g * 32 < depth), CODES)
    elif CODES == "int4" and SCALES == "apart":
        numbers = _shifted(rows, shift, start + first, there, weight_stride, KIND)
    elif CODES == "int4" or CODES == "codebook":
        numbers = _nibbles(rows, codebook, start + first, there, weight_stride, CODES)
    else:
        numbers = numbers_of(rows, k, there & (k < depth), CODES)
        if SCALES == "apart" and HAS_ZERO:
            numbers -= shift.to(tl.float32)
    if SCALES == "even" or SCALES == "any" or SCALES == "listed":
        if SCALES == "even":
            group = (start + first) // group_size
            within = there & (start + first < depth)
        elif SCALES == "listed":
            group = tl.load(group_of + k, mask=k < depth, other=0)
            within = there & (k < depth)
        else:
            group = k // group_size
            within = there & (k < depth)
        if HAS_ZERO:
            numbers -= tl.load(zero + outputs * groups + group, mask=within, other=0).to(tl.float32)
        numbers *= tl.load(scale + outputs * groups + group, mask=within, other=0)
    return numbers


def e4m3_for(device: torch.device) -> str:
    """The `CODES` of e4m3 numbers on a device: GPUs have instructions for them from capability 8.9 on."""
    return "fp8" if available.capability_of(device) >= 89 else "e4m3"


def scales_of(group_size: int, groups: int, group_of: Tensor | None = None, *, whole: bool = True) -> str:
    """The `SCALES` of codes in groups; `whole`: codes less their zeros are numbers that every dtype holds."""
    if group_of is not None:
        return "listed"
    if whole and groups > 1 and group_size % DEEPEST == 0:
        return "apart"
    return "even" if group_size % 32 == 0 and groups > 1 else "any"
