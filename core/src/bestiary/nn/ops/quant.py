"""Products with quantized weights: ``x @ weight.T + bias``, x ``[..., in]``, where the weight is kept as small codes.

Everywhere ``weight[o, i] = number(code[o, i]) * scale[o, group of i]``; scales are float32 ``[out, groups]``, a group
being `group_size` inputs that follow one another, the last one maybe fewer. Codes of four bits lie two in a byte, the
earlier input in the low half: uint8 ``[out, ceil(in / 2)]``.

These references decode a strip of rows at a time and leave the product to `linear`, so that a row's bits are as
independent of its batch as they are without quantization. They compute in the dtype of `x`; fp16, whose range codes
times activations can leave, in fp32. Quantized activations are multiplied as fp32 numbers that equal their codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .linear import linear
from .registry import Implementation, Target, op

FP8_MAX = 448.0
"""The largest e4m3 number (arXiv 2209.05433)."""
_STRIP = 512
_TINY = 1e-12


@op
def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """int8 weights ``[out, in]`` in [−128, 127], one scale a row: `scale` float32 ``[out]``."""
    wide = x.to(_computed_in(x.dtype))
    out = _by_strips(wide, weight.shape[0], lambda rows: weight[rows].to(wide.dtype))
    return _finished(out * scale.to(wide.dtype), bias, x.dtype)


@op
def linear_int8_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    input_scale: Tensor | None = None,
    input_zero: Tensor | None = None,
    symmetric: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    """As `linear_int8`, the activations rounded to int8 first (`int8_codes`)."""
    codes, steps, zeros = int8_codes(x, input_scale, input_zero, symmetric)
    shifted = codes if zeros is None else codes - zeros
    out = _by_strips(shifted, weight.shape[0], lambda rows: weight[rows].float())
    return _finished(out * steps * scale, bias, x.dtype)


@op
def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, group_size: int, bias: Tensor | None = None) -> Tensor:
    """e4m3 weights ``[out, in]``, `scale` ``[out, groups]``."""
    wide = x.to(_computed_in(x.dtype))
    return _finished(_scaled_product(wide, weight, scale, group_size), bias, x.dtype)


@op
def linear_fp8_fp8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    group_size: int,
    input_scale: Tensor | None = None,
    input_group: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """As `linear_fp8`, the activations rounded to e4m3 first.

    Their scale is `input_scale` (one for all) where given; otherwise each token's own, ``max|x| / 448``, or that of
    each `input_group` inputs of it.
    """
    return _finished(
        _scaled_product(_rounded_to_fp8(x, input_scale, input_group), weight, scale, group_size), bias, x.dtype
    )


@op
def linear_int4(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int,
    order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Packed codes 0…15, a number being ``code - zero``; `zero` uint8 ``[out, groups]``.

    `order` int32 says which input each column of the weight multiplies, where groups are not of inputs that follow one
    another (GPTQ's act order).
    """
    return _grouped(x, weight, scale, zero, group_size, order, bias, packed=True)


@op
def linear_uint8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int,
    order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """As `linear_int4`, with codes 0…255, one a byte."""
    return _grouped(x, weight, scale, zero, group_size, order, bias, packed=False)


@op
def linear_codebook(
    x: Tensor, weight: Tensor, scale: Tensor, codebook: Tensor, group_size: int, bias: Tensor | None = None
) -> Tensor:
    """Packed codes 0…15 that stand for the numbers in `codebook` float32 ``[16]``."""
    wide = x.to(_computed_in(x.dtype))
    width = x.shape[-1]

    def decode(rows: slice) -> Tensor:
        numbers = codebook[unpacked(weight[rows], width).int()]
        return scaled(numbers, scale[rows], group_size).to(wide.dtype)

    return _finished(_by_strips(wide, weight.shape[0], decode), bias, x.dtype)


def unpacked(weight: Tensor, width: int) -> Tensor:
    """uint8 ``[rows, ceil(width / 2)]``, two codes a byte → ``[rows, width]``, one a byte."""
    pairs = torch.stack((weight & 15, weight >> 4), dim=-1)
    return pairs.view(weight.shape[0], -1)[:, :width]


def packed(codes: Tensor) -> Tensor:
    """uint8 ``[rows, width]`` of codes 0…15 → ``[rows, ceil(width / 2)]``; an odd one out is joined by a zero."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def spread(scale: Tensor, group_size: int, width: int) -> Tensor:
    """``[rows, groups]`` → ``[rows, width]``: for each input the value of its group."""
    if scale.shape[1] == 1:
        return scale.expand(-1, width)
    return scale.repeat_interleave(group_size, dim=1)[:, :width]


def scaled(numbers: Tensor, scale: Tensor, group_size: int, zero: Tensor | None = None) -> Tensor:
    """``(numbers - zero) * scale`` in fp32, ``[rows, width]``; `scale` and `zero` are ``[rows, groups]``.

    Groups of one size are a dimension of their own, so that nothing is repeated in memory.
    """
    rows, width = numbers.shape
    groups = scale.shape[1]
    if width % groups == 0 and width // groups == (group_size if groups > 1 else width):
        made = numbers.float().view(rows, groups, -1)
        shifted = made if zero is None else made.sub(zero.float().unsqueeze(-1))
        return shifted.mul(scale.unsqueeze(-1)).view(rows, width)
    shifted = numbers.float() if zero is None else numbers.float() - spread(zero.float(), group_size, width)
    return shifted * spread(scale, group_size, width)


def fp8_numbers(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite e4m3 numbers in `dtype`, by moving bits: torch converts them one by one on CPUs.

    Exponent and mantissa lie in an e4m3 as in the upper bits of an fp16 whose exponent counts from 15 instead of 7, so
    that 2⁸ is missing; sign bits extended into a wider integer are cut off again.
    """
    halves = (codes.view(torch.int8).to(torch.int16) << 7) & ~0x4000
    return halves.view(torch.float16).to(dtype) * 256


def int8_codes(
    x: Tensor, scale: Tensor | None, zero: Tensor | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Activations as whole numbers in [−128, 127], in fp32, their scale and zero: ``x ≈ (code − zero) * scale``.

    `scale` and `zero`, one for all, are given where they were fixed by calibration. Otherwise each token has its own:
    ``max|x| / 127``, or where not `symmetric` the range from min to max, zero included, in 255 steps.
    """
    wide = x.float()
    if scale is None and symmetric:
        scale = wide.abs().amax(-1, keepdim=True).clamp_min(_TINY) / 127
    elif scale is None:
        low, high = wide.amin(-1, keepdim=True).clamp_max(0), wide.amax(-1, keepdim=True).clamp_min(0)
        scale = (high - low).clamp_min(_TINY) / 255
        zero = torch.round(-128 - low / scale)
    codes = torch.round(wide / scale)
    codes = codes if zero is None else codes + zero
    return codes.clamp(-128, 127), scale, zero


def _rounded_to_fp8(x: Tensor, scale: Tensor | None, group: int | None) -> Tensor:
    """The numbers that `x` becomes by way of e4m3, in fp32."""
    wide = x.float()
    if scale is None:
        largest = wide.abs()
        if group is not None:
            whole = torch.nn.functional.pad(largest, (0, -largest.shape[-1] % group))
            largest = whole.view(*whole.shape[:-1], whole.shape[-1] // group, group)
        scale = largest.amax(-1, keepdim=group is None).clamp_min(_TINY) / FP8_MAX
        if group is not None:
            scale = scale.repeat_interleave(group, dim=-1)[..., : wide.shape[-1]]
    return to_fp8(wide / scale).float() * scale


def to_fp8(numbers: Tensor) -> Tensor:
    """The nearest e4m3 numbers; what is larger than the largest becomes it."""
    return numbers.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _scaled_product(x: Tensor, weight: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """`x` times numbers of a narrower type: scaled afterwards where each row has one scale, otherwise before."""
    if scale.shape[1] == 1:
        return _by_strips(x, weight.shape[0], lambda rows: fp8_numbers(weight[rows], x.dtype)) * scale[:, 0].to(x.dtype)

    def decode(rows: slice) -> Tensor:
        return scaled(fp8_numbers(weight[rows], torch.float32), scale[rows], group_size).to(x.dtype)

    return _by_strips(x, weight.shape[0], decode)


def _grouped(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None,
    bias: Tensor | None, *, packed: bool,
) -> Tensor:  # fmt: skip
    dtype = x.dtype
    x = x if order is None else x.index_select(-1, order)
    wide, width = x.to(_computed_in(dtype)), x.shape[-1]

    def decode(rows: slice) -> Tensor:
        codes = unpacked(weight[rows], width) if packed else weight[rows]
        return scaled(codes, scale[rows], group_size, zero[rows]).to(wide.dtype)

    return _finished(_by_strips(wide, weight.shape[0], decode), bias, x.dtype)


def _by_strips(x: Tensor, rows: int, decode: Callable[[slice], Tensor]) -> Tensor:
    """``x @ weight.T`` where ``decode(rows)`` gives those rows of the weight; no more than one strip is held."""
    if rows <= _STRIP:
        return linear(x, decode(slice(0, rows)))
    return torch.cat([linear(x, decode(slice(at, at + _STRIP))) for at in range(0, rows, _STRIP)], dim=-1)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype is torch.float16 else dtype


def _finished(out: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    out = out.to(dtype)
    return out if bias is None else out + bias


def int_mm_linear_int8_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    input_scale: Tensor | None = None,
    input_zero: Tensor | None = None,
    symmetric: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear_int8_int8` by a CPU's int8 instructions, in int32: exact, so that rows cannot depend on their batch."""
    codes, steps, zeros = int8_codes(x.reshape(-1, x.shape[-1]), input_scale, input_zero, symmetric)
    sums = torch._int_mm(codes.to(torch.int8), weight.t()).float()
    if zeros is not None:
        sums = sums - zeros * weight.sum(1, dtype=torch.int32)
    return _finished((sums * steps * scale).view(*x.shape[:-1], -1), bias, x.dtype)


def _only_on_cpu(target: Target) -> str | None:
    return None if target.device == "cpu" else "for CPUs"


INT_MM = Implementation("int_mm", int_mm_linear_int8_int8, _only_on_cpu, priority=5)
