"""Causal convolution along each sequence of a flat batch, channel by channel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrence import by_token, offered_by_token
from .registry import op

if TYPE_CHECKING:
    from bestiary.nn.attention.metadata import AttentionMetadata


@op
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, metadata: AttentionMetadata, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """``out[t] = Σ_j weight[:, j] x[t − (k−1) + j] + bias`` within each sequence, then SiLU where `silu` says so.

    Args:
        x: ``[tokens, channels]``. weight: ``[channels, k]``. bias: ``[channels]``.
        state: ``[seqs, channels, k−1]``, each sequence's inputs before this step, oldest first; zeros where it begins.

    Returns:
        ``[tokens, channels]`` in the dtype of `x`, summed in fp32; and the states after the last tokens.
    """
    if metadata.num_decodes == state.shape[0]:
        out, after = _step(state, x, weight=weight.float())
    else:
        out, after = _in_a_row(x, weight.float(), state, metadata)
    return _finished(out, bias, silu).to(x.dtype), after


def _step(state: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    window = torch.cat([state, x.unsqueeze(-1).to(state.dtype)], -1)
    return (window.float() * weight).sum(-1), window[..., 1:]


def _finished(out: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    out = out if bias is None else out + bias.float()
    return F.silu(out) if silu else out


def _conv_by_token(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, metadata: AttentionMetadata, silu: bool = False
) -> tuple[Tensor, Tensor]:
    out, after = by_token(partial(_step, weight=weight.float()), state, metadata, x)
    return _finished(out, bias, silu).to(x.dtype), after


CONV_BY_TOKEN = offered_by_token(_conv_by_token)


def _in_a_row(x: Tensor, weight: Tensor, state: Tensor, metadata: AttentionMetadata) -> tuple[Tensor, Tensor]:
    """All sequences in one row, each preceded by its state: a sum of `k` shifted products, whatever their lengths."""
    before = state.shape[-1]
    seqs = torch.arange(state.shape[0], device=x.device)
    starts = metadata.query_start.long() + torch.arange(state.shape[0] + 1, device=x.device) * before
    owner = torch.repeat_interleave(seqs, metadata.query_start.diff(), output_size=x.shape[0])
    own = torch.arange(x.shape[0], device=x.device) + owner * before
    row = x.new_empty(x.shape[0] + state.shape[0] * before, x.shape[1], dtype=torch.float32)
    steps = torch.arange(before, device=x.device)
    row[starts[:-1, None] + steps] = state.transpose(1, 2).float()
    row[own + before] = x.float()
    long = row.shape[0] - before
    summed = row[:long] * weight[:, 0]
    for at in range(1, before + 1):
        summed.addcmul_(row[at : at + long], weight[:, at])
    return summed[own], row[starts[1:, None] - before + steps].transpose(1, 2).to(state.dtype)
