"""Routing: the best experts of each token in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestiary.nn.ops.moe import topk_routing as routing

from .sizes import power_of_2
from .variants import Variant


@triton.jit  # type: ignore[untyped-decorator]
def _route(  # type: ignore[no-untyped-def]
    logits, bias, weights, ids, experts, stride, top_k, groups, kept,
    SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, GROUPS: tl.constexpr, EXPERTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One token; of equal scores the lower expert first. NaN counts as the best score, as in `torch.topk`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, EXPERTS)
    within = at < experts
    logit = tl.load(logits + row * stride + at, mask=within, other=-float("inf")).to(tl.float32)
    if SIGMOID:
        scores = 1 / (1 + tl.exp(-logit))
    else:
        raised = tl.exp(logit - tl.max(logit, 0))
        scores = raised / tl.sum(raised, 0)
    choice = scores
    if bias is not None:
        choice += tl.load(bias + at, mask=within, other=0.0).to(tl.float32)
    choice = tl.where(choice == choice, tl.maximum(choice, -3.0e38), float("inf"))
    choice = tl.where(within, choice, -float("inf"))
    if GROUPS > 0:
        group = at // (experts // groups)
        number = tl.arange(0, GROUPS)
        worth = tl.full([GROUPS], -float("inf"), tl.float32)
        for each in range(groups):
            own = tl.where(within & (group == each), choice, -float("inf"))
            best = tl.max(own, 0)
            if bias is not None:
                first = tl.argmax(own, 0, tie_break_left=True)
                best += tl.max(tl.where(at == first, -float("inf"), own), 0)
            worth = tl.where(number == each, best, worth)
        allowed = tl.zeros([EXPERTS], tl.int32)
        for _ in range(kept):
            chosen = tl.argmax(worth, 0, tie_break_left=True)
            worth = tl.where(number == chosen, -float("inf"), worth)
            allowed = tl.where(group == chosen, 1, allowed)
        choice = tl.where(within & (allowed == 0), -3.0e38, choice)
    places = tl.arange(0, K)
    found = tl.zeros([K], tl.int64)
    shares = tl.zeros([K], tl.float32)
    for place in range(top_k):
        best = tl.argmax(choice, 0, tie_break_left=True)
        found = tl.where(places == place, best.to(tl.int64), found)
        shares = tl.where(places == place, tl.sum(tl.where(at == best, scores, 0.0), 0), shares)
        choice = tl.where(at == best, -float("inf"), choice)
    if RENORMALIZE:
        shares = shares / tl.maximum(tl.sum(shares, 0), 1.1754943508222875e-38)
    tl.store(weights + row * top_k + places, shares, mask=places < top_k)
    tl.store(ids + row * top_k + places, found, mask=places < top_k)


def topk_routing(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    scoring_func: str = "softmax",
    correction_bias: Tensor | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `bestiary.nn.ops.moe.topk_routing`; scores that the kernel does not know go the reference's way."""
    if scoring_func not in ("softmax", "sigmoid"):
        return routing.reference(
            router_logits, top_k, renormalize, scoring_func, correction_bias, num_expert_group, topk_group
        )
    tokens, experts = router_logits.shape
    logits = router_logits if router_logits.stride(1) == 1 else router_logits.contiguous()
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, top_k, dtype=torch.int64, device=logits.device)
    groups, kept = (0, 0) if num_expert_group is None or topk_group is None else (num_expert_group, topk_group)
    bias = None if correction_bias is None else correction_bias.contiguous()
    if tokens:
        _route[(tokens,)](
            logits, bias, weights, ids, experts, logits.stride(0), top_k, groups, kept,
            SIGMOID=scoring_func == "sigmoid", RENORMALIZE=renormalize,
            **_sizes(experts, top_k, groups), num_warps=_WARPS,
        )  # fmt: skip
    return weights, ids


_WARPS = 1


def _sizes(experts: int, top_k: int, groups: int) -> dict[str, int]:
    return {
        "GROUPS": power_of_2(groups) if groups else 0,
        "EXPERTS": power_of_2(experts),
        "K": power_of_2(top_k),
    }


def variants() -> Iterator[Variant]:
    for dtype in ("*bf16", "*fp32"):
        for experts, top_k, groups, biased in ((8, 2, 0, False), (128, 8, 0, False), (256, 8, 8, True)):
            signature = {"logits": dtype, "bias": "*fp32", "weights": "*fp32", "ids": "*i64"}
            signature |= dict.fromkeys(("experts", "stride", "top_k", "groups", "kept"), "i32")
            constants = {"SIGMOID": biased, "RENORMALIZE": True, **_sizes(experts, top_k, groups)}
            yield Variant(_route, signature, constants if biased else {**constants, "bias": None}, _WARPS)
