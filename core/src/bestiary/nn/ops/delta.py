"""The gated delta rule along each sequence of a flat batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .recurrence import (
    CHUNK,
    Scanned,
    by_sequence,
    by_token,
    flattened,
    in_chunks,
    left_between,
    offered_by_token,
)
from .registry import op

if TYPE_CHECKING:
    from bestiary.nn.attention.metadata import AttentionMetadata

_FINE = 16
"""Tokens a chunk where each channel fades at its own rate: products of all pairs and channels are then explicit."""


@op
def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, metadata: AttentionMetadata
) -> Scanned:
    """``s_t = s + beta_t k_t (v_t − k_tᵀ s)``, ``s = exp(decay_t) s_{t−1}``; ``o_t = q_tᵀ s_t`` (arXiv 2412.06464).

    In a chunk the corrections are the solution of a unit triangular system (arXiv 2406.06484).

    Args:
        q, k: ``[tokens, key heads, d_k]``, normalised and scaled; consecutive value heads share one, as many as there
            are for each. v: ``[tokens, heads, d_v]``.
        decay: ``[tokens, heads, 1]``, or ``[tokens, heads, d_k]`` where each channel of a key forgets at its own rate
            (Kimi delta attention, arXiv 2510.26692); logarithms. beta: ``[tokens, heads]``.
        state: ``[seqs, heads, d_k, d_v]``.

    Returns:
        o ``[tokens, heads, d_v]`` and the states after the last tokens.
    """
    groups, share = k.shape[1], v.shape[1] // k.shape[1]

    def piece(s: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Scanned:
        size = CHUNK if decay.shape[-1] == 1 else _FINE
        vs, decays, betas = in_chunks(groups, v, decay, beta.unsqueeze(-1), size=size)
        qs, ks = in_chunks(groups, q, k, size=size)
        total = decays.cumsum(-2)
        last, grown = total[..., -1:, :], total.exp()
        system = (betas * _faded_products(ks, ks, total)).tril(-1)
        right = torch.cat([betas * vs, betas * grown * ks], -1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        new, old = solved.split([v.shape[-1], k.shape[-1]], -1)
        scores, queries, keys = _faded_products(qs, ks, total), grown * qs, (last - total).exp() * ks
        s = s.reshape(groups, share, *s.shape[1:])
        out = []
        for at, keep in enumerate(last.exp().transpose(-1, -2)):
            values = new[at] - old[at] @ s
            out.append(queries[at] @ s + scores[at] @ values)
            s = s * keep + keys[at].transpose(-1, -2) @ values
        return flattened(torch.stack(out), q.shape[0]), s.flatten(0, 1)

    return by_sequence(_delta_step, piece, state, metadata, q, k, v, decay, beta)


def _delta_step(s: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Scanned:
    share = v.shape[1] // k.shape[1]
    q, k = (each.repeat_interleave(share, 1).unsqueeze(-2) for each in (q, k))
    s = s * decay.exp().unsqueeze(-1)
    correction = (v.unsqueeze(-2) - k @ s) * beta[..., None, None]
    s.addcmul_(k.transpose(-1, -2), correction)
    return (q @ s).squeeze(-2), s


def _delta_by_token(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, metadata: AttentionMetadata
) -> Scanned:
    return by_token(_delta_step, state, metadata, q, k, v, decay, beta)


DELTA_BY_TOKEN = offered_by_token(_delta_by_token)


def _faded_products(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """``Σ_d a_i b_j exp(total_i − total_j)`` for ``i ≥ j``, otherwise 0; one chunk at a time where channels differ."""
    if total.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * left_between(total)
    products = []
    for left, right, here in zip(a, b, total, strict=True):
        apart = here.unsqueeze(-2) - here.unsqueeze(-3)
        products.append((left.unsqueeze(-2) * right.unsqueeze(-3) * apart.clamp_max_(0).exp_()).sum(-1))
    return torch.stack(products).tril_()
