"""State space recurrences along each sequence of a flat batch: selective scan, and state space duality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .recurrence import Scanned, Step, by_sequence, by_token, flattened, in_chunks, left_between, offered_by_token
from .registry import op

if TYPE_CHECKING:
    from bestiary.nn.attention.metadata import AttentionMetadata

_AT_ONCE = 128


@op
def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, metadata: AttentionMetadata
) -> Scanned:
    """``h_t = exp(dt_t a) h_{t−1} + dt_t x_t b_t``, ``y_t = h_t c_t`` (Mamba, arXiv 2312.00752).

    Args:
        x, dt: ``[tokens, channels]``. a: ``[channels, n]``, negative. b, c: ``[tokens, n]``.
        state: ``[seqs, channels, n]``.

    Returns:
        y ``[tokens, channels]`` and the states after the last tokens.
    """

    def piece(h: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Scanned:
        out = []
        for at in range(0, x.shape[0], _AT_ONCE):  # bounds what is held for every token: [tokens, channels, n]
            part = slice(at, at + _AT_ONCE)
            kept = (dt[part].unsqueeze(-1) * a).exp_()
            states = (dt[part] * x[part]).unsqueeze(-1) * b[part].unsqueeze(1)
            for keep, here in zip(kept, states, strict=True):
                h = here.addcmul_(keep, h)
            out.append((states @ c[part].unsqueeze(-1)).squeeze(-1))
            h = h.clone()
        return torch.cat(out), h

    return by_sequence(_selective_step(a), piece, state, metadata, x, dt, b, c)


def _selective_step(a: Tensor) -> Step:
    def step(h: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Scanned:
        h = (dt.unsqueeze(-1) * a).exp_().mul_(h).addcmul_((dt * x).unsqueeze(-1), b.unsqueeze(1))
        return (h @ c.unsqueeze(-1)).squeeze(-1), h

    return step


def _selective_by_token(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, metadata: AttentionMetadata
) -> Scanned:
    return by_token(_selective_step(a), state, metadata, x, dt, b, c)


SELECTIVE_BY_TOKEN = offered_by_token(_selective_by_token)


@op
def ssd_scan(x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, metadata: AttentionMetadata) -> Scanned:
    """``h_t = exp(decay_t) h_{t−1} + x_t b_tᵀ``, ``y_t = h_t c_t``, head by head (Mamba-2, arXiv 2405.21060).

    Linear attention with decay is the same, where values are x, keys b and queries c.

    Args:
        x: ``[tokens, heads, p]``. decay: ``[tokens, heads]``, logarithms. b, c: ``[tokens, groups, n]``; as many
            consecutive heads share a group as there are heads for each.
        state: ``[seqs, heads, p, n]``.

    Returns:
        y ``[tokens, heads, p]`` and the states after the last tokens.
    """

    def piece(h: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Scanned:
        (xs, decays), (bs, cs) = in_chunks(b.shape[1], x, decay.unsqueeze(-1)), in_chunks(b.shape[1], b, c)
        total = decays.cumsum(-2)
        last = total[..., -1:, :]
        scores = (cs @ bs.transpose(-1, -2)) * left_between(total)
        made = ((last - total).exp() * xs).transpose(-1, -2) @ bs
        h = h.reshape(b.shape[1], -1, *h.shape[1:])
        carried = []
        for keep, new in zip(last.exp(), made, strict=True):
            carried.append(h)
            h = h * keep + new
        y = scores @ xs + (total.exp() * cs) @ torch.stack(carried).transpose(-1, -2)
        return flattened(y, x.shape[0]), h.flatten(0, 1)

    return by_sequence(_ssd_step, piece, state, metadata, x, decay, b, c)


def _ssd_step(h: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Scanned:
    share = x.shape[1] // b.shape[1]
    b, c = (each.repeat_interleave(share, 1) for each in (b, c))
    h = (h * decay.exp()[..., None, None]).addcmul_(x.unsqueeze(-1), b.unsqueeze(-2))
    return (h @ c.unsqueeze(-1)).squeeze(-1), h


def _ssd_by_token(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, metadata: AttentionMetadata
) -> Scanned:
    return by_token(_ssd_step, state, metadata, x, decay, b, c)


SSD_BY_TOKEN = offered_by_token(_ssd_by_token)
