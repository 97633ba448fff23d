"""Activation ops. Those called ``…_and_mul`` take gate and up side by side: ``[…, 2 d]`` in, ``[…, d]`` out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import op


@op
def silu_and_mul(x: Tensor) -> Tensor:
    """``silu(gate) * up`` (SwiGLU, arXiv 2002.05202)."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate).mul_(up)


@op
def gelu_and_mul(x: Tensor, approximate: str = "none") -> Tensor:
    """``gelu(gate) * up`` (GeGLU, arXiv 2002.05202). `approximate`: "none" (erf) or "tanh"."""
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate=approximate).mul_(up)


@op
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU (arXiv 1606.08415). `approximate`: "none" (erf) or "tanh"."""
    return F.gelu(x, approximate=approximate)


@op
def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the coarse GELU of CLIP and its kin."""
    return x * torch.sigmoid(1.702 * x)


@op
def relu2(x: Tensor) -> Tensor:
    """``relu(x)²`` (Primer, arXiv 2109.08668)."""
    return F.relu(x).square_()


@op
def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """xIELU (arXiv 2411.13010): quadratic above zero, an integrated ELU below; alphas are stored before softplus."""
    above = F.softplus(alpha_p) * x * x + beta * x
    below = (torch.expm1(x.clamp_max(eps)) - x) * (beta + F.softplus(alpha_n)) + beta * x
    return torch.where(x > 0, above, below)
