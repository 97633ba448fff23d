"""Linear recurrences along each sequence of a flat batch: selective scan, state space duality, gated delta rule.

All compute in fp32 from fp32 states. One-token sequences, which come first in a batch, are taken in one go; of the
others each by itself: token by token where every element of the state decays at its own rate, otherwise in chunks,
within which everything is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import op

if TYPE_CHECKING:
    from bestiary.nn.attention.metadata import AttentionMetadata

CHUNK, _FINE = 64, 16
_AT_ONCE = 128

Scanned = tuple[Tensor, Tensor]


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

    def step(h: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Scanned:
        h = h * (dt.unsqueeze(-1) * a).exp() + (dt * x).unsqueeze(-1) * b.unsqueeze(1)
        return (h * c.unsqueeze(1)).sum(-1), h

    def scan(h: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Scanned:
        out = []
        for at in range(0, x.shape[0], _AT_ONCE):  # bounds what is held for every token: [tokens, channels, n]
            part = slice(at, at + _AT_ONCE)
            kept = (dt[part].unsqueeze(-1) * a).exp()
            states = (dt[part] * x[part]).unsqueeze(-1) * b[part].unsqueeze(1)
            for keep, here in zip(kept, states, strict=True):
                h = here.addcmul_(keep, h)
            out.append((states * c[part].unsqueeze(1)).sum(-1))
            h = h.clone()
        return torch.cat(out), h

    return _scanned(step, scan, state, metadata, x, dt, b, c)


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
    share = x.shape[1] // b.shape[1]

    def step(h: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Scanned:
        b, c = (each.repeat_interleave(share, 1) for each in (b, c))
        h = h * decay.exp()[..., None, None] + x.unsqueeze(-1) * b.unsqueeze(-2)
        return (h * c.unsqueeze(-2)).sum(-1), h

    def scan(h: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Scanned:
        (xs, decays), (bs, cs) = _chunks(b.shape[1], x, decay.unsqueeze(-1)), _chunks(b.shape[1], b, c)
        total = decays.cumsum(-2)
        last = total[..., -1:, :]
        scores = (cs @ bs.transpose(-1, -2)) * _between(total)
        made = ((last - total).exp() * xs).transpose(-1, -2) @ bs
        h = h.reshape(b.shape[1], share, *h.shape[1:])
        carried = []
        for keep, new in zip(last.exp(), made, strict=True):
            carried.append(h)
            h = h * keep + new
        y = scores @ xs + (total.exp() * cs) @ torch.stack(carried).transpose(-1, -2)
        return _flat(y, x.shape[0]), h.flatten(0, 1)

    return _scanned(step, scan, state, metadata, x, decay, b, c)


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

    def step(s: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Scanned:
        q, k = (each.repeat_interleave(share, 1).unsqueeze(-1) for each in (q, k))
        s = s * decay.exp().unsqueeze(-1)
        correction = (v - (s * k).sum(-2)) * beta.unsqueeze(-1)
        s = s + k * correction.unsqueeze(-2)
        return (s * q).sum(-2), s

    def scan(s: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Scanned:
        size = CHUNK if decay.shape[-1] == 1 else _FINE
        vs, decays, betas = _chunks(groups, v, decay, beta.unsqueeze(-1), size=size)
        qs, ks = _chunks(groups, q, k, size=size)
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
        return _flat(torch.stack(out), q.shape[0]), s.flatten(0, 1)

    return _scanned(step, scan, state, metadata, q, k, v, decay, beta)


def _scanned(
    step: Callable[..., Scanned],
    scan: Callable[..., Scanned],
    state: Tensor,
    metadata: AttentionMetadata,
    *flat: Tensor,
) -> Scanned:
    """`step` over the leading one-token sequences, ``[seqs, …]``; `scan` over each of the others, ``[tokens, …]``."""
    flat = tuple(each.float() for each in flat)
    ones = metadata.num_decodes
    done = [step(state[:ones], *(each[:ones] for each in flat))] if ones else []
    at = ones
    for seq, length in enumerate(metadata.query_lens_host[ones:], ones):
        out, after = scan(state[seq], *(each[at : at + length] for each in flat))
        done.append((out, after.unsqueeze(0)))
        at += length
    if len(done) == 1:
        return done[0]
    outs, states = zip(*done, strict=True)
    return torch.cat(outs), torch.cat(states)


def _chunks(groups: int, *flat: Tensor, size: int = CHUNK) -> tuple[Tensor, ...]:
    """``[tokens, heads, d]`` as ``[chunks, groups, heads of a group, up to `size`, d]``, zeros after the last token."""
    tokens = flat[0].shape[0]
    size = min(size, tokens)
    made = []
    for each in flat:
        heads, width = each.shape[1:]
        padded = F.pad(each, (0, 0, 0, 0, 0, -tokens % size)).view(-1, size, groups, heads // groups, width)
        made.append(padded.permute(0, 2, 3, 1, 4).contiguous())
    return tuple(made)


def _flat(chunks: Tensor, tokens: int) -> Tensor:
    """What `_chunks` did, undone."""
    return chunks.flatten(1, 2).transpose(1, 2).flatten(0, 1)[:tokens]


def _between(total: Tensor) -> Tensor:
    """``exp(total_i − total_j)`` for ``i ≥ j``, otherwise 0: what is left at i of what came at j."""
    apart = total - total.transpose(-1, -2)
    later = torch.ones_like(apart, dtype=torch.bool).triu_(1)
    return apart.masked_fill_(later, -torch.inf).exp_()


def _faded_products(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """``Σ_d a_i b_j exp(total_i − total_j)`` for ``i ≥ j``, otherwise 0; one chunk at a time where channels differ."""
    if total.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * _between(total)
    products = []
    for left, right, here in zip(a, b, total, strict=True):
        apart = here.unsqueeze(-2) - here.unsqueeze(-3)
        products.append((left.unsqueeze(-2) * right.unsqueeze(-3) * apart.clamp_max_(0).exp_()).sum(-1))
    return torch.stack(products).tril_()
