"""Comparing logits and answers, and saying what a difference looks like."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bestiary.api.outputs import CompletionOutput

from .failures import ContractFailure

ATOL = 1e-4
"""How far fp32 logits may be off; and how near two tokens must be for either to be right."""


def require_close(
    got: torch.Tensor, want: torch.Tensor, atol: float, what: str, *, where: str = "", likely: Sequence[str] = ()
) -> None:
    """Raises ContractFailure, with the first position that differs and what the difference looks like.

    Args:
        got, want: logits ``[positions, vocabulary]``. what: what a difference means. where: of which prompt.
        likely: causes to name instead of those that the difference looks like.
    """
    __tracebackhide__ = True
    if got.shape != want.shape:
        raise ContractFailure(f"{what}: shape {list(got.shape)} instead of {list(want.shape)}", where=where or None)
    difference = (got.float() - want.float()).abs().nan_to_num(nan=torch.inf)
    by_position = difference.amax(dim=-1)
    wrong = (by_position > atol).nonzero().flatten().tolist()
    if not wrong:
        return
    first = wrong[0]
    token = int(difference[first].argmax())
    place = f"position {first}, token id {token}: {float(got[first, token]):.6g}, not {float(want[first, token]):.6g}"
    raise ContractFailure(
        what,
        where=f"{where}, {place}" if where else place,
        got=f"{float(by_position.max()):.3g} off at most, in {len(wrong)} of {len(by_position)} positions",
        allowed=f"{atol:.3g}",
        likely=likely or _causes(got.float(), want.float(), wrong),
    )


def _causes(got: torch.Tensor, want: torch.Tensor, wrong: Sequence[int]) -> list[str]:
    if not bool(torch.isfinite(got).all()):
        return ["numbers that are not finite: a division, an uninitialised buffer, a mask of a whole row"]
    scale = float((got * want).sum() / want.square().sum())
    if abs(scale - 1) > 1e-3 and float((got - scale * want).abs().max()) < 1e-2 * float(want.abs().max()):
        return [f"all logits are {scale:.4g} times the reference's: a scale left out or applied twice at the head"]
    if wrong[0] > 0:
        causes = ["position 0 agrees, so weights and norms do: look at positions, rotation, mask and key-value heads"]
        if wrong[0] > 1:
            causes.append(f"everything before position {wrong[0]} agrees: a window, or what depends on the length")
        return causes
    return [
        "position 0 is wrong already, where attention has one key: a weight, a bias, a norm, an activation or a scale",
        "two projections of one shape exchanged, for instance in packed_modules_mapping or in a split",
    ]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """How far logits are off as a whole: the norm of the difference, relative to the norm of `want`."""
    return float((got - want).norm() / want.norm())


def require_same_answers(
    got: Sequence[CompletionOutput], want: Sequence[CompletionOutput], what: str, likely: Sequence[str]
) -> None:
    """Tokens and log-probabilities agree; tokens may differ from where the two likeliest are nearer than `ATOL`."""
    __tracebackhide__ = True
    for number, (one, other) in enumerate(zip(got, want, strict=True)):
        _require_same(one, other, what, f"request {number} of {len(want)}", likely)


def _require_same(got: CompletionOutput, want: CompletionOutput, what: str, where: str, likely: Sequence[str]) -> None:
    __tracebackhide__ = True
    for at, (ours, theirs) in enumerate(zip(got.logprobs or [], want.logprobs or [], strict=True)):
        shared = set(ours) & set(theirs)
        off = max((abs(ours[token].logprob - theirs[token].logprob) for token in shared), default=float("inf"))
        if off > ATOL:
            raise ContractFailure(
                what, where=f"{where}, token {at}", got=f"a log-probability {off:.3g} off", allowed=ATOL, likely=likely
            )
        if got.token_ids[at] != want.token_ids[at]:
            gap = abs(ours[got.token_ids[at]].logprob - theirs[want.token_ids[at]].logprob)
            if gap < ATOL:
                return  # a tie: both are right, and from here on the texts differ
            raise ContractFailure(
                what, where=f"{where}, token {at}", got=f"{got.token_ids[at]}, not {want.token_ids[at]}", likely=likely
            )
