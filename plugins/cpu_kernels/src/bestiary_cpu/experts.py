"""Mixtures of experts: who goes where, and what all experts make of it, in a few calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops.moe import fused_experts, topk_routing
from bestiary.nn.ops.packed import PackedWeight

from ._abi import (
    GELU,
    GELU_TANH,
    MOST_EXPERTS,
    SIGMOID,
    SILU,
    SOFTMAX,
    ActivationArgs,
    ExpertCombineArgs,
    ExpertMatmulArgs,
    PrepareArgs,
    RouteArgs,
    TopkArgs,
)
from .pool import Call
from .products import Layout, Part
from .runtime import Rows, pointer, runtime

_ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH}
_SCORING = {"softmax": SOFTMAX, "sigmoid": SIGMOID}


@dataclass(frozen=True, slots=True)
class StackLayout:
    """Packed matrices of one format and shape, `each` bytes apart."""

    format: GgmlType
    count: int
    n_out: int
    n_in: int
    address: int
    each: int


def pack_experts(weights: Sequence[Tensor]) -> PackedWeight | None:
    """Packed weights of the experts' layers, moved together; they become parts of what is given back.

    None where a layer is not packed, or its parts are of several formats.
    """
    packed = [each for each in weights if isinstance(each, PackedWeight)]
    layouts = [each.contents for each in packed]
    if len(packed) != len(weights) or any(layout is None or len(layout.parts) > 1 for layout in layouts):
        return None
    first: Layout = layouts[0]
    each = len(packed[0])
    data = torch.from_numpy(runtime().weights.take(each * len(packed))[: each * len(packed)]).view(len(packed), each)
    for row, weight, layout in zip(data, packed, layouts, strict=True):
        row.copy_(weight.detach())
        weight.data = row
        weight.contents = Layout((Part(layout.parts[0].format, layout.n_out, row.data_ptr()),), layout.n_in)
    stack = StackLayout(first.parts[0].format, len(packed), first.n_out, first.n_in, data.data_ptr(), each)
    return PackedWeight.of(data, stack, (len(packed), first.n_out, first.n_in), stack.format.name)


def routing(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    scoring_func: str = "softmax",
    correction_bias: Tensor | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`topk_routing`; of equal scores the lower expert first."""
    experts = router_logits.shape[-1]
    bias = correction_bias
    if experts > MOST_EXPERTS or scoring_func not in _SCORING or (bias is not None and bias.dtype is not torch.float32):
        return topk_routing.reference(
            router_logits, top_k, renormalize, scoring_func, bias, num_expert_group, topk_group
        )
    here, rows = runtime(), Rows(router_logits.float())
    weights, ids = here.empty(rows.count, top_k), here.integers(rows.count, top_k)
    args = TopkArgs(
        rows.address, rows.stride, rows.count, experts, top_k, _SCORING[scoring_func], renormalize, pointer(bias),
        num_expert_group or 0, topk_group or 0, weights.data_ptr(), ids.data_ptr(),
    )  # fmt: skip
    here.run(Call("bst_topk", args), keep=(rows.tensor, bias))
    return weights, ids


def experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, slots: Tensor, activation: str) -> Tensor:
    """`fused_experts` with packed stacks; plain ones, in models that pack nothing, go torch's way."""
    if not (isinstance(w13, PackedWeight) and isinstance(w2, PackedWeight) and activation in _ACTIVATIONS):
        return fused_experts.reference(x, w13, w2, weights, slots, activation)
    here, rows = runtime(), Rows(x)
    first, second = w13.contents, w2.contents
    tokens, k = slots.shape
    pairs, width = tokens * k, second.n_in
    out = here.empty(tokens, second.n_out)
    if not pairs:
        return out
    slots, weights = slots.contiguous(), weights.contiguous()
    offsets, places, rows_of, tiles = (here.small(size) for size in (first.count + 1, pairs, pairs, 2 * pairs))
    inner, outer = here.empty(pairs, first.n_out), here.empty(pairs, second.n_out)
    quantized = [here.native.bst_takes_quantized(each.format) for each in (first, second)]
    prepared = [
        here.prepared(here.native.bst_prepared_size(kind, pairs, each.n_in))
        for kind, each in zip(quantized, (first, second), strict=True)
    ]
    at = [each.data_ptr() for each in (offsets, places, rows_of, tiles)]
    calls = (
        Call("bst_route", RouteArgs(slots.data_ptr(), tokens, k, first.count, *at)),
        Call("bst_prepare", PrepareArgs(
            quantized[0], rows.address, rows.stride, at[2], pairs, first.n_in, prepared[0], at[3])),
        Call("bst_expert_matmul", _product(first, prepared[0], at[0], inner)),
        Call("bst_activation", ActivationArgs(
            _ACTIVATIONS[activation], True, inner.data_ptr(), first.n_out, pairs, width, None, 0, quantized[1],
            prepared[1], at[3])),
        Call("bst_expert_matmul", _product(second, prepared[1], at[0], outer)),
        Call("bst_expert_combine", ExpertCombineArgs(
            outer.data_ptr(), second.n_out, weights.data_ptr(), at[1], tokens, k, second.n_out, None, 0,
            out.data_ptr(), second.n_out)),
    )  # fmt: skip
    here.run(*calls, keep=(rows.tensor, slots, weights))
    return out


def _product(stack: StackLayout, prepared: int, offsets: int, out: Tensor) -> ExpertMatmulArgs:
    return ExpertMatmulArgs(
        stack.format, stack.address, stack.each, prepared, offsets, stack.count, stack.n_out, stack.n_in,
        out.data_ptr(), stack.n_out,
    )  # fmt: skip
