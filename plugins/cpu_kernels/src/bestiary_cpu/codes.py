"""Weights of other quantizations as the blocks that kernels read: int8 rows as Q8_0, groups of 4 bits as Q4_1.

Codes stay what they are; a scale becomes fp16, an error of 2⁻¹¹ beside that of the codes, which is 2⁻⁹ and more. Where
that loses more (scales that fp16 has no room for), or groups are no whole blocks, nothing is packed.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.quant import linear_int4, linear_int8, linear_uint8, unpacked

from .products import pack, product

logger = logging.getLogger("bestiary")
_BLOCK = 32
_MOST_ERROR = 2.0**-10


def pack_int8(weight: Tensor, scale: Tensor) -> PackedWeight | None:
    """int8 ``[out, in]`` with a scale a row."""
    if isinstance(weight, PackedWeight):
        return None
    rows, width = weight.shape
    return _packed(
        GgmlType.Q8_0, weight, [scale[:, None].expand(rows, width // _BLOCK)], lambda: weight.view(torch.uint8)
    )


def pack_int4(weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None) -> Any:
    """Two codes a byte ``[out, in / 2]``: ``(code - zero) * scale``, for each group of columns, whatever inputs they
    are of."""
    if isinstance(weight, PackedWeight) or group_size % _BLOCK:
        return None
    times = group_size // _BLOCK if scale.shape[1] > 1 else weight.shape[1] * 2 // _BLOCK
    d = scale.repeat_interleave(times, 1)
    m = (-zero.float() * scale).repeat_interleave(times, 1)
    return _packed(GgmlType.Q4_1, weight, [d, m], lambda: _halves(unpacked(weight, weight.shape[1] * 2)))


def pack_uint8(weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None) -> Any:
    """One code a byte, where every zero point is 128: the same codes with a sign."""
    if isinstance(weight, PackedWeight) or group_size % _BLOCK:
        return None
    if not weight.is_meta and not bool((zero == 128).all()):
        return None
    times = group_size // _BLOCK if scale.shape[1] > 1 else weight.shape[1] // _BLOCK
    return _packed(GgmlType.Q8_0, weight, [scale.repeat_interleave(times, 1)], lambda: weight ^ 128)


def _packed(format: GgmlType, weight: Tensor, heads: list[Tensor], codes: Any) -> PackedWeight | None:
    """Blocks ``[heads as fp16][codes]``, packed."""
    blocks = heads[0].shape[1]
    width = blocks * _BLOCK
    held = weight.shape[1] * (2 if format is GgmlType.Q4_1 else 1)
    if width != held:
        return None
    size = format.type_size
    if weight.is_meta:
        return pack([(format, torch.empty(len(weight), blocks * size, dtype=torch.uint8, device="meta"))], width)
    halves = [head.half() for head in heads]
    if not all(_keeps(head, half) for head, half in zip(heads, halves, strict=True)):
        logger.warning("a weight has scales beyond float16: without native kernels it is multiplied slowly")
        return None
    made = torch.empty(len(weight), blocks, size, dtype=torch.uint8)
    for index, half in enumerate(halves):
        made[..., 2 * index : 2 * index + 2] = half.contiguous().view(torch.uint8).view(len(weight), blocks, 2)
    made[..., 2 * len(halves) :] = codes().view(len(weight), blocks, -1)
    return pack([(format, made.view(len(weight), -1))], width)


def _keeps(wide: Tensor, half: Tensor) -> bool:
    return bool(((half.float() - wide).abs() <= _MOST_ERROR * wide.abs()).all())


def _halves(codes: Tensor) -> Tensor:
    """Codes ``[rows, in]``, the first sixteen of each block in low halves, the others in high ones."""
    pairs = codes.reshape(len(codes), -1, 2, _BLOCK // 2)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).view(len(codes), -1)


def int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, PackedWeight):
        return product(x, weight.contents, bias)
    return linear_int8.reference(x, weight, scale, bias)


def int4(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if isinstance(weight, PackedWeight):
        return product(x if order is None else x.index_select(-1, order), weight.contents, bias)
    return linear_int4.reference(x, weight, scale, zero, group_size, order, bias)


def uint8(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if isinstance(weight, PackedWeight):
        return product(x if order is None else x.index_select(-1, order), weight.contents, bias)
    return linear_uint8.reference(x, weight, scale, zero, group_size, order, bias)
