"""Draws where the logits are: all rows of a step that a request does not reshape, in one op and one copy back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bestiary.nn.ops.sampling import draw_tokens

from .request_state import RequestState


def on_device(logits: torch.Tensor) -> bool:
    """Whether rows are drawn so: on a GPU, where looking at each row by itself means waiting for it."""
    return logits.is_cuda


def draw_together(logits: torch.Tensor, states: Sequence[RequestState], rows: Sequence[int]) -> dict[int, int]:
    """The token of each of `rows`, -1 where nothing can be drawn. Each is a function of its logits, its request's seed
    and the token's position (`draw_tokens`); another one than a CPU's draw."""
    if not rows:
        return {}
    asked = [states[row] for row in rows]
    device = logits.device
    whole = torch.tensor([(each.seed, len(each.tokens)) for each in asked], dtype=torch.int64, device=device)
    params = [each.sampling for each in asked]
    numbers = torch.tensor([(p.temperature, p.top_p, p.min_p) for p in params], dtype=torch.float32, device=device)
    top_k = torch.tensor([p.top_k for p in params], dtype=torch.int32, device=device)
    picked = logits if len(rows) == len(logits) else logits[list(rows)]
    temperature, top_p, min_p = (each.contiguous() for each in numbers.unbind(1))
    seeds, positions = (each.contiguous() for each in whole.unbind(1))
    drawn = draw_tokens(picked, seeds, positions, temperature, top_k, top_p, min_p)
    return dict(zip(rows, drawn.tolist(), strict=True))
