"""fp8 activations times fp8 weights on the tensor cores: one kernel rounds the activations, torch multiplies.

For weights with one scale a row and activations with one a token (or one for all), widths that are multiples of 16, as
`torch.nn.functional.scaled_mm` asks, and bf16 results. `fp8_blocks` computes all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variants import Variant

_BLOCK = 4096


@triton.jit
def _e4m3(number):  # type: ignore[no-untyped-def]
    """fp32 within ±448 → the nearest e4m3 number's code, even ones first.

    From 2⁻⁶ on it is the upper bits, rounded, with an exponent that counts from 7 instead of 127; below, 512 times the
    number, which adding 1.5 · 2²³ rounds to a whole one and leaves in the lower bits.
    """
    size = tl.abs(number)
    bits = size.to(tl.int32, bitcast=True)
    normal = (bits + 0x7FFFF + (bits >> 20 & 1) >> 20) - 960
    small = (size * 512 + 12582912.0).to(tl.int32, bitcast=True) & 15
    return tl.where(size < 0.015625, small, normal) | tl.where(number < 0, 128, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(x, given, codes, scales, depth, x_stride, given_stride, HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One token: its scale ``max|x| / 448`` (NaN where one is in it), unless it is given, and its e4m3 codes. A
    `given_stride` of 0 gives all the same scale."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    largest = tl.full((BLOCK,), 1e-12, tl.float32)
    broken = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = tl.load(x + at, mask=at < depth, other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(number))
        broken |= (number != number).to(tl.int32)
    scale = tl.load(given + row * given_stride) if HAS_SCALE else tl.div_rn(tl.max(largest, 0), 448.0)
    tl.store(scales + row, tl.where(tl.max(broken, 0) > 0, float("nan"), scale))
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = tl.div_rn(tl.load(x + at, mask=at < depth, other=0).to(tl.float32), scale)
        code = _e4m3(tl.minimum(tl.maximum(number, -448.0), 448.0))
        tl.store(codes + row * depth + at, code.to(tl.uint8), mask=at < depth)


def rounded_to_fp8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x ``[rows, depth]`` → e4m3 codes, and their scales fp32 ``[rows, 1]``; `scale` is one for all or ``[rows]``."""
    rows, depth = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    codes = torch.empty(rows, depth, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        _rounded[rows,](
            x, scale, codes.view(torch.uint8), scales, depth, x.stride(0), _stride(scale),
            HAS_SCALE=scale is not None, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
    return codes, scales


def _stride(given: Tensor | None) -> int:
    """Between the scales of one row and the next; 0 where one is for all."""
    return 0 if given is None or given.numel() == 1 else 1


def linear_fp8_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, group_size: int, input_scale: Tensor | None = None,
    input_group: int | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_fp8_fp8`."""
    width, depth = weight.shape
    if not takes(x, width, scale, input_group):
        from . import fp8_blocks

        return fp8_blocks.linear_fp8_fp8(x, weight, scale, group_size, input_scale, input_group, bias)
    from torch.nn.functional import ScalingType, scaled_mm

    codes, scales = rounded_to_fp8(x.reshape(-1, depth), input_scale)
    out = scaled_mm(
        codes, weight.t(), scales, ScalingType.RowWise, scale.t().contiguous(), ScalingType.RowWise,
        output_dtype=x.dtype,
    )  # fmt: skip
    out = out if bias is None else out + bias
    return out.view(*x.shape[:-1], width)


def takes(x: Tensor, width: int, scale: Tensor, input_group: int | None) -> bool:
    """Whether torch's product computes this one; it depends on the layer, and on there being rows."""
    whole = width % 16 == 0 and x.shape[-1] % 16 == 0
    return x.dtype is torch.bfloat16 and x.numel() > 0 and whole and scale.shape[1] == 1 and input_group is None


def variants() -> Iterator[Variant]:
    divisible = ("depth", "x_stride")
    for given in (False, True):
        constants: dict[str, object] = {"HAS_SCALE": given, "BLOCK": _BLOCK}
        constants |= {} if given else {"given": None}
        types = {"x": "*bf16", "given": "*fp32", "codes": "*u8", "scales": "*fp32"}
        types |= dict.fromkeys((*divisible, "given_stride"), "i32")
        yield Variant(_rounded, types, constants, 8, divisible=divisible)
