"""Tokens that only the device knows, as a step's input: they are put into it there. See `pending.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bestiary.nn.sending import send

from .request_state import RequestState


def tokens_of(state: RequestState, start: int, count: int) -> list[int]:
    """Tokens ``start … start + count - 1`` of a request; 0 in the place of one that only the device knows."""
    known = state.tokens[start : start + count]
    return known if len(known) == count else [*known, 0]


def is_unknown(state: RequestState, start: int, count: int) -> bool:
    """Whether the last of these tokens is one that only the device knows."""
    return start + count > len(state.tokens)


def fill_in(input_ids: torch.Tensor, unknown: Sequence[tuple[int, RequestState]]) -> None:
    """Put the tokens that only the device knows into rows of a step's ids. They all come from the step before."""
    if not unknown:
        return
    source = [state.pending for _, state in unknown if state.pending is not None]
    rows, places = [row for row, _ in unknown], [row for _, row in source]
    ids = source[0][0]
    if rows == places == list(range(len(ids))):
        input_ids[: len(ids)].copy_(ids)
        return
    where = send(np.array([rows, places], np.int64), input_ids.device)
    input_ids.index_copy_(0, where[0], ids.index_select(0, where[1]))
