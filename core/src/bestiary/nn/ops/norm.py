"""Normalisation ops.

All accumulate in fp32 and round where transformers rounds: the normalised value becomes the activations' dtype first
and is multiplied by the weight in that dtype (``LlamaRMSNorm``), except in Gemma's, which multiplies in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import op


@op
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension (arXiv 1910.07467); result in the dtype of `x`."""
    normed = F.rms_norm(x, x.shape[-1:], None, eps)
    if weight is None:
        return normed
    scaled = normed * weight
    return scaled if scaled.dtype is x.dtype else scaled.to(x.dtype)


@op
def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Add, then normalise: ``(rms_norm(x + residual), x + residual)``. Neither argument is changed."""
    added = x + residual
    return rms_norm.reference(added, weight, eps), added


@op
def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm whose stored weight is an offset from one; everything in fp32, rounded once, to the dtype of `x`."""
    normed = F.rms_norm(x.float(), x.shape[-1:], None, eps)
    return normed.mul_(1.0 + weight.float()).to(x.dtype)


@op
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension (arXiv 1607.06450), in the parameters' dtype; result in that of `x`."""
    if weight is None or weight.dtype is x.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return torch.layer_norm(x.to(weight.dtype), x.shape[-1:], weight, bias, eps).to(x.dtype)
