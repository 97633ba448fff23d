"""Stacked products as the kernel of experts takes them: the layouts of `bestiary.nn.ops.quant` and GGUF's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.nn.ops.product import Product

from . import fp8_blocks
from .codes import e4m3_for, scales_of
from .fp8 import rounded_to_fp8
from .gguf_blocks import FORMATS
from .int8 import rounded_to_int8
from .sorting import Tiles


class Weights(NamedTuple):
    """A stacked product as the kernel takes it."""

    codes: str
    scales: str
    width: int
    weight: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    codebook: Tensor | None = None
    order: Tensor | None = None
    bias: Tensor | None = None
    group_size: int = 1

    @property
    def row_stride(self) -> int:
        return self.weight.shape[-1]

    @property
    def groups(self) -> int:
        return 1 if self.scale is None else self.scale.shape[-1] if self.scale.dim() == 3 else 1


class Inputs(NamedTuple):
    """Rows of activations; where they are rounded, what their codes are, and each row's steps and shift."""

    x: Tensor
    kind: str = "plain"
    steps: Tensor | None = None
    shifts: Tensor | None = None


_CODES = {
    "linear_int8": "int8", "linear_int8_int8": "int8", "linear_fp8": "e4m3", "linear_fp8_fp8": "e4m3",
    "linear_int4": "int4", "linear_uint8": "uint8", "linear_codebook": "codebook", "linear": "plain",
}  # fmt: skip


def why_not(product: Product) -> str | None:
    """None where the kernel computes a stacked product, otherwise the reason in a few words."""
    name, settings = product.op.name, product.settings
    if name == "linear_gguf":
        runs = settings["runs"]
        return None if len(runs) == 1 and runs[0].type in FORMATS else "blocks of other types, or of several"
    if name not in _CODES:
        return f"a product by {name}"
    if name != "linear_fp8_fp8":
        return None
    groups, depth = product.tensors["scale"].shape[-1], product.tensors["weight"].shape[-1]
    return fp8_blocks.why_not(depth, settings["group_size"], groups, settings["input_group"])


def weights_of(product: Product, depth: int) -> Weights:
    """What `why_not` lets pass."""
    tensors: Mapping[str, Tensor] = {name: each.contiguous() for name, each in product.tensors.items()}
    bias = None if product.bias is None else product.bias.contiguous()
    weight, settings, name = tensors["weight"], product.settings, product.op.name
    if name == "linear_gguf":
        run = settings["runs"][0]
        return Weights(run.type.name, "blocks", run.rows, weight.view(len(weight), run.rows, run.row_bytes), bias=bias)
    codes, width = _CODES[name], weight.shape[1]
    if codes == "e4m3":
        weight, codes = weight.view(torch.uint8), e4m3_for(weight.device)
    if name == "linear":
        return Weights(codes, "none", width, weight, bias=bias)
    scale = tensors["scale"]
    groups = scale.shape[-1] if scale.dim() == 3 else 1
    size = depth if groups == 1 else settings["group_size"]
    by = settings.get("input_group")
    if (name.startswith("linear_fp8") and groups > 1) or by is not None:
        scales, size = "apart" if name == "linear_fp8_fp8" else scales_of(size, groups), by or size
    elif codes in ("int8", "e4m3", "fp8"):
        scales = "row"
    else:
        scales = scales_of(size, groups, whole=codes != "codebook")
    given = {each: tensors.get(each) for each in ("zero", "codebook", "order")}
    return Weights(codes, scales, width, weight, scale, bias=bias, group_size=size, **given)


def inputs_of(x: Tensor, product: Product, found: Tiles, top_k: int | None) -> tuple[Inputs, bool]:
    """Activations as a product takes them, and whether rows are tokens, of which each has `top_k` pairs; None where
    rows are places. A scale of an expert's own is every place's."""
    tensors, settings = product.tensors, product.settings
    by_token = top_k is not None
    if not product.op.name.endswith(("_fp8_fp8", "_int8_int8")):
        return Inputs(x), by_token
    given, given_zero = tensors.get("input_scale"), tensors.get("input_zero")
    if given is not None:
        expert = found.expert_of_places(len(given))
        given, given_zero = given[expert], None if given_zero is None else given_zero[expert]
        x, by_token = (x[found.token_of_places(top_k)] if top_k is not None else x), False
    if product.op.name == "linear_int8_int8":
        codes, steps, shifts = rounded_to_int8(x, given, given_zero, settings["symmetric"])
        return Inputs(codes, "int8", steps, shifts), by_token
    group = settings["input_group"] or x.shape[1]
    codes, steps = rounded_to_fp8(x.reshape(-1, group), given)
    return Inputs(codes.view(len(x), -1).view(torch.uint8), e4m3_for(x.device), steps.view(len(x), -1)), by_token
