"""Products with one matrix for each head: what multi-head latent attention puts into its queries and its results."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import fixed_tile_linear
from .registry import Implementation, Target, op


@op
def linear_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """``[tokens, heads, in] × [heads, out, in] → [tokens, heads, out]``."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def fixed_tile_linear_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """The same, head by head in GEMMs of one shape, so that a row's bits depend on that row alone."""
    return torch.stack([fixed_tile_linear(x[:, head], each) for head, each in enumerate(weight)], 1)


def _only_deterministic(target: Target) -> str | None:
    return None if target.deterministic else "it is slower, and meant for deterministic mode"


BY_HEAD_FIXED_TILE = Implementation("fixed_tile", fixed_tile_linear_by_head, _only_deterministic, priority=10)
