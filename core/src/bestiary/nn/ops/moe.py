"""Mixture-of-experts ops: which experts a token goes to, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import gelu, gelu_and_mul, relu2, silu_and_mul
from .linear import linear
from .product import Product
from .registry import op

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": lambda x: gelu_and_mul(x, "tanh"),
}
"""What stands between an expert's two products, by the names that configurations use: ``act(gate) * up``."""

UNGATED: dict[str, Activation] = {
    "silu_no_mul": F.silu,
    "gelu_no_mul": gelu,
    "gelu_tanh_no_mul": lambda x: gelu(x, "tanh"),
    "relu2_no_mul": relu2,
}
"""Those of experts without a gate: ``act(up)``."""

SCORES: dict[str, Activation] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),
}
"""A router's logits ``[tokens, experts]`` → scores of the same shape, by the names that configurations use."""


@op
def topk_routing(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    scoring_func: str = "softmax",
    correction_bias: Tensor | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token and their weights, in fp32.

    Scores are made of ``router_logits [tokens, experts]`` by `scoring_func`, a name in `SCORES`. `correction_bias`
    (DeepSeek-V3, arXiv 2412.19437) is added for the choice alone, never for the weights. With groups, only experts of
    the `topk_group` best of `num_expert_group` groups can be chosen, a group being worth its best score, or under a
    bias its best two.

    Returns:
        (weights fp32, expert ids int64), both ``[tokens, top_k]``; `renormalize` makes a token's weights sum to one.
    """
    logits = router_logits.float()
    scores = SCORES[scoring_func](logits)
    choice = scores if correction_bias is None else scores + correction_bias.float()
    if num_expert_group is not None and topk_group is not None:
        choice = _best_groups_only(choice, num_expert_group, topk_group, 1 if correction_bias is None else 2)
    ids = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return weights, ids


def _best_groups_only(choice: Tensor, groups: int, kept: int, counted: int) -> Tensor:
    """`choice` with minus infinity outside the `kept` best groups; a group is worth its `counted` best scores."""
    by_group = choice.view(*choice.shape[:-1], groups, -1)
    worth = by_group.topk(counted, dim=-1).values.sum(-1)
    best = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, worth.topk(kept, dim=-1).indices, True)
    return by_group.masked_fill(~best.unsqueeze(-1), -torch.inf).view(choice.shape)


@op
def fused_experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, slots: Tensor, activation: str) -> Tensor:
    """Every token through its experts, summed by weight: ``[tokens, hidden]``.

    Args:
        x: ``[tokens, hidden]``. weights: fp32 ``[tokens, k]``.
        w13: ``[slots, 2 * width, hidden]``, an expert's gate and up projection. w2: ``[slots, hidden, width]``.
        slots: int64 ``[tokens, k]``, where the chosen experts lie in `w13` and `w2`; −1 for one that is not here.
        activation: a name in `ACTIVATIONS`.
    """
    act = ACTIVATIONS[activation]
    return by_expert(x, weights, slots, len(w13), lambda e, rows, _: linear(act(linear(rows, w13[e])), w2[e]))


@op
def grouped_experts(
    x: Tensor, first: Product, second: Product, weights: Tensor, slots: Tensor, activation: Activation
) -> Tensor:
    """As `fused_experts`, for experts with biases, quantized weights or any activation: ``[tokens, hidden]``.

    Args:
        first, second: what every expert does before and after `activation`, stacked (`product.stacked`).
        activation: takes what `first` makes of any number of tokens, ``[pairs, first's outputs]``, row by row. Versions
            may know those of `ACTIVATIONS`, gates being the first half of `first`'s outputs.
    """
    count = len(first.tensors["weight"])
    return by_expert(x, weights, slots, count, lambda e, rows, _: second.at(e)(activation(first.at(e)(rows))))


Expert = Callable[[int, Tensor, Tensor], Tensor]


def by_expert(x: Tensor, weights: Tensor, slots: Tensor, count: int, expert: Expert) -> Tensor:
    """Sort the tokens by expert, give each expert its rows, add what comes back; sums are kept in fp32.

    A token's contributions are added in the order of the slots, whatever the batch. ``expert(slot, rows [n, hidden],
    tokens [n])``, `tokens` being the places of `rows` in `x`, gives ``[n, hidden]``.
    """
    top_k = slots.shape[1]
    chosen = slots.flatten()
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen + 1, minlength=count + 1).tolist()
    sums = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    at = counts[0]
    for slot, rows in enumerate(counts[1:]):
        if rows:
            picked = order[at : at + rows]
            tokens = picked // top_k
            share = weights.flatten()[picked].unsqueeze(-1)
            sums.index_add_(0, tokens, expert(slot, x[tokens], tokens).float() * share)
            at += rows
    return sums.to(x.dtype)
