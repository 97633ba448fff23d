"""Ops on logits."""

from __future__ import annotations

from torch import Tensor

from .registry import op


@op
def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row ``[rows, vocabulary]`` and its id (int64); NaN counts as the largest."""
    peaks, ids = logits.max(-1)
    return peaks, ids
