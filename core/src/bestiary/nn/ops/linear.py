"""``x @ weight.T + bias``, and the version whose rows do not depend on their batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .registry import Implementation, Target, op

_TILE = 8


@op
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``[..., in] × [out, in] → [..., out]``, accumulated as torch's own GEMM does."""
    return F.linear(x, weight, bias)


def fixed_tile_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same product in GEMMs of exactly 8 rows, so that a row's bits depend on that row alone.

    BLAS chooses its kernel and order of summation by the shape of the whole product; one shape means one order.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    padded = F.pad(rows, (0, 0, 0, -count % _TILE))
    out = x.new_empty(padded.shape[0], weight.shape[0])
    transposed = weight.t()
    for start in range(0, padded.shape[0], _TILE):
        torch.mm(padded[start : start + _TILE], transposed, out=out[start : start + _TILE])
    out = out[:count]
    if bias is not None:
        out = out + bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _only_deterministic(target: Target) -> str | None:
    return None if target.deterministic else "it is slower, and meant for deterministic mode"


FIXED_TILE = Implementation("fixed_tile", fixed_tile_linear, _only_deterministic, priority=10)
