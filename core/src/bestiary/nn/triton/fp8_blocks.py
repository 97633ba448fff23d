"""fp8 activations times fp8 weights whose scales go by groups of inputs, as checkpoints of DeepSeek and Qwen have them.

A strip of 128 inputs at most is multiplied as its codes say and then scaled by both sides, in fp32 (arXiv 2412.19437,
section 3.3): by fp8 tensor cores from capability 9.0 on, elsewhere as numbers of the dtype of `x`, which hold every
code. One kernel rounds the activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops import quant

from . import available
from .codes import DEEPEST, numbers_of
from .fp8 import rounded_to_fp8
from .shapes import GROUP_M, Tile, tile_for
from .sizes import cdiv
from .tiles import finish, tile_at
from .variants import Variant


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    codes, steps, weight, scale, bias, out, rows, width, depth, step_groups, groups, group_size, weight_stride,
    NATIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """A tile of ``(codes * step) @ (weight * scale).T + bias``; strips of `BLOCK_K` inputs lie within a group."""
    row_tile, column_tile = tile_at(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    kind = out.dtype.element_ty
    left_at = codes + m.to(tl.int64)[:, None] * depth
    right_at = weight + n.to(tl.int64)[:, None] * weight_stride
    step_at, scale_at = steps + m * step_groups, scale + n.to(tl.int64) * groups
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
    for start in range(0, depth, BLOCK_K):
        at = (start + k)[None, :]
        held, there = (m < rows)[:, None] & (at < depth), (n < width)[:, None] & (at < depth)
        if NATIVE:
            left = tl.load(left_at + at, mask=held, other=0).to(tl.float8e4nv, bitcast=True)
            right = tl.load(right_at + at, mask=there, other=0).to(tl.float8e4nv, bitcast=True)
        else:
            left = numbers_of(left_at, at, held, "e4m3").to(kind)
            right = numbers_of(right_at, at, there, "e4m3").to(kind)
        part = tl.dot(left, tl.trans(right), input_precision="ieee")
        group = start // group_size
        step = tl.load(step_at + tl.minimum(group, step_groups - 1), mask=m < rows, other=0)
        by = tl.load(scale_at + tl.minimum(group, groups - 1), mask=n < width, other=0)
        acc += part * step[:, None] * by[None, :]
    finish(acc, bias, out, m, n, rows, width, bias is not None)


def why_not(depth: int, group_size: int, groups: int, input_group: int | None) -> str | None:
    """None where the kernel computes such a layer, otherwise the reason in a few words."""
    if input_group is not None and depth % input_group:
        return "groups of activations that do not fill a row"
    if input_group is not None and groups > 1 and input_group != group_size:
        return "groups of activations that are not the weights'"
    if (input_group or (group_size if groups > 1 else DEEPEST)) % DEEPEST:
        return f"groups that are no multiple of {DEEPEST}"
    return None


def linear_fp8_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, group_size: int, input_scale: Tensor | None = None,
    input_group: int | None = None, bias: Tensor | None = None, *, exact: bool = False,
) -> Tensor:  # fmt: skip
    """As `bestiary.nn.ops.quant.linear_fp8_fp8`, which computes the groups that the kernel does not take."""
    width, depth = weight.shape
    groups = scale.shape[1]
    if why_not(depth, group_size, groups, input_group) is not None:
        return quant.linear_fp8_fp8.reference(x, weight, scale, group_size, input_scale, input_group, bias)
    codes, steps = rounded_to_fp8(x.reshape(-1, input_group or depth), input_scale)
    rows, step_groups = x.numel() // depth, depth // (input_group or depth)
    weight, scale = weight.view(torch.uint8).contiguous(), scale.contiguous()
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    native = x.dtype is not torch.float32 and available.capability_of(x.device) >= 90
    tile = _tile(rows, x.dtype, native, exact)
    if out.numel():
        _product[cdiv(rows, tile.block_m) * cdiv(width, tile.block_n),](
            codes.view(torch.uint8), steps, weight, scale, bias, out, rows, width, depth, step_groups, groups,
            input_group or (group_size if groups > 1 else depth), weight.stride(0),
            NATIVE=native, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=GROUP_M,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
    return out.view(*x.shape[:-1], width)


def _tile(rows: int, dtype: torch.dtype, native: bool, exact: bool) -> Tile:
    """As `tile_for`; fp8 tensor cores take strips of 128, and where there are rows enough tiles of as many."""
    if not native:
        return tile_for(rows, dtype, exact)
    if exact:
        return Tile(64, 64, 128, 4, 3)
    if rows <= 16:
        return Tile(16, 64, 128, 4, 4)
    return Tile(64, 64, 128, 4, 4) if rows <= 256 else Tile(128, 64, 128, 8, 4)


def variants() -> Iterator[Variant]:
    sizes = ("width", "depth", "weight_stride")
    numbers = dict.fromkeys(("rows", *sizes, "step_groups", "groups", "group_size"), "i32")
    types = {"codes": "*u8", "steps": "*fp32", "weight": "*u8", "scale": "*fp32", "out": "*bf16"} | numbers
    for native in (False, True):
        for rows in (1, 64, 512):
            tile = _tile(rows, torch.bfloat16, native, False)
            constants = {
                "NATIVE": native, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
                "GROUP_M": GROUP_M, "bias": None,
            }  # fmt: skip
            if native or rows < 512:
                yield Variant(
                    _product, types, constants, tile.num_warps, tile.num_stages, *((90, 1000) if native else (80, 90)),
                    options={"enable_fp_fusion": False}, divisible=sizes,
                )  # fmt: skip
