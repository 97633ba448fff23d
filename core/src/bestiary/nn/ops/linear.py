"""``x @ weight.T + bias``; the version for a CPU's BLAS; the version whose rows do not depend on their batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .registry import Implementation, Target, op

_TILE = 8
_FEW = 4
_STRIP, _WIDE, _MANY = 1024, 3072, 64


@op
def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows `ids` (any shape, int64) of a table ``[rows, width]``: ``[..., width]``. What products packed, it reads."""
    return F.embedding(ids, weight)


@op
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``[..., in] × [out, in] → [..., out]``, accumulated as torch's own GEMM does."""
    return F.linear(x, weight, bias)


def linear_by_shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same product, put to BLAS in the shape that it is fast in (figures: Zen 3, two threads).

    Up to 4 rows are bound by reading the weight: as ``(weight @ x.T).T``, one row being doubled, that goes at 20 to 30
    GB/s, and otherwise at 10 or less. Many rows times a wide weight go by strips of it, 4 to 8 % faster than at once.
    """
    rows, width = x.shape[0] if x.dim() == 2 else 0, weight.shape[0]
    if 0 < rows <= _FEW:
        columns = (x.repeat(2, 1) if rows == 1 else x).t()
        out = torch.mm(weight, columns)[:, :rows].t().contiguous()
    elif rows >= _MANY and width >= _WIDE:
        out = x.new_empty(rows, width)
        for at in range(0, width, _STRIP):
            torch.mm(x, weight[at : at + _STRIP].t(), out=out[:, at : at + _STRIP])
    else:
        return F.linear(x, weight, bias)
    return out if bias is None else out.add_(bias)


def _only_float32_on_cpu(target: Target) -> str | None:
    if target.device != "cpu" or target.dtype is not torch.float32:
        return "for float32 on a CPU"
    return "a row's bits depend on its batch" if target.deterministic else None


BY_SHAPE = Implementation("by_shape", linear_by_shape, _only_float32_on_cpu, priority=5)


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
