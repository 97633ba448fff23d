"""Attention written out in fp32: what fused kernels cannot do (soft-cap, sinks), and the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import AttentionSpec


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """Softmax attention, all arithmetic in fp32.

    Args:
        query: ``[batch, num_kv_heads, group, t, head_size]``; head ``h`` is ``(h // group, h % group)``.
        key, value: ``[batch, num_kv_heads, l, head_size]``.
        bias: broadcasts to ``[batch, num_kv_heads, group, t, l]``.

    Returns:
        The shape and dtype of `query`.
    """
    batch, kv_heads, group, rows, size = query.shape
    folded = query.float().reshape(batch, kv_heads, group * rows, size)
    scores = (folded @ key.float().transpose(-1, -2)).mul_(spec.scale).view(batch, kv_heads, group, rows, -1)
    if spec.logits_soft_cap is not None:
        scores = scores.div_(spec.logits_soft_cap).tanh_().mul_(spec.logits_soft_cap)
    if bias is not None:
        scores = scores + bias
    weights = _softmax(scores, sinks).view(batch, kv_heads, group * rows, -1)
    return (weights @ value.float()).view(query.shape).to(query.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys; a sink is one more logit a head, whose share goes nowhere (gpt-oss)."""
    if sinks is None:
        return scores.softmax(-1)
    logit = sinks.float().view(*scores.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, logit), -1).softmax(-1)[..., :-1].contiguous()
