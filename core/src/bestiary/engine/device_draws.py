"""Draws where the logits are: all rows of a step that a request does not reshape, in one op that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bestiary.nn.ops.sampling import best_tokens, draw_from_part, draw_tokens
from bestiary.nn.sending import send

from .request_state import RequestState


def on_device(logits: torch.Tensor) -> bool:
    """Whether rows are drawn so: on a GPU, where looking at each row by itself means waiting for it."""
    return logits.is_cuda


def draw_together(logits: torch.Tensor, states: Sequence[RequestState], rows: Sequence[int]) -> torch.Tensor:
    """The token of each of `rows`, -1 where nothing can be drawn: int64 ``[len(rows)]``, not waited for. Each is a
    function of its logits, its request's seed and the token's position (`draw_tokens`); another one than a CPU's draw.
    """
    if not rows:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    whole = len(rows) == len(logits)
    if all(states[row].sampling.greedy for row in rows):
        places = None if whole else send(np.array(rows, np.int64), logits.device)
        peaks, ids = best_tokens(logits if places is None else logits.index_select(0, places))
        return torch.where(torch.isfinite(peaks), ids, -1)
    sent = _send(states, rows, logits.device)
    seeds, at, places, top_k = sent[:4]
    temperature, top_p, min_p = sent[4:].view(torch.float64).float()
    picked = logits if whole else logits.index_select(0, places)
    if all(draws_from_all(states[row]) for row in rows):
        scores, ids = draw_from_part(picked, seeds, at, temperature, 0)
        return torch.where(torch.isfinite(scores), ids, -1)
    return draw_tokens(picked, seeds, at, temperature, top_k.int(), top_p, min_p)


def draw_parts(logits: torch.Tensor, states: Sequence[RequestState], first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of this rank's columns, the ids from `first` on: each row's largest score and its id (`draw_from_part`). All rows
    are greedy or drawn from everything."""
    sent = _send(states, range(len(states)), logits.device)
    return draw_from_part(logits, sent[0], sent[1], sent[4].view(torch.float64).float(), first)


def draws_from_all(state: RequestState) -> bool:
    """Whether nothing is cut off before a draw."""
    p = state.sampling
    return not p.greedy and p.top_k <= 0 and p.top_p >= 1.0 and p.min_p <= 0.0


def _send(states: Sequence[RequestState], rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 ``[7, len(rows)]``: seeds, positions, rows, top-k; and the bits of fp64 temperatures, top-p and min-p."""
    asked = [states[row] for row in rows]
    params = [each.sampling for each in asked]
    positions = [each.position for each in asked]
    whole = np.array([[each.seed for each in asked], positions, rows, [p.top_k for p in params]], np.int64)
    shares = np.array([[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]])
    return send(np.concatenate((whole, shares.astype(np.float64).view(np.int64))), device)
