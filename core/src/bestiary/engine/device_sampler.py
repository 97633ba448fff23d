"""From logits to tokens where the logits are: all rows of a step together, and the host looks once, when it wants to.

The rules are those of `sampler.py`; numbers that draws need are a GPU's own (`device_draws.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bestiary.nn.sending import send

from .device_draws import draw_together
from .device_edits import edited
from .logprobs import likeliest, read_likeliest
from .plan import SampledToken
from .request_state import RequestState
from .sampler import NUMERICAL, no_token, reshapes, wants_logprobs


@dataclass(frozen=True, slots=True)
class Queued:
    """Tokens that a device draws, on their way to the host.

    Attributes:
        states, grammars: of each row. width: of the vocabulary.
        ids: int64 ``[rows]`` on the device, what it can take for the tokens of the next step: 0 where there is none.
        explained: the rows with log-probabilities, with `count` likeliest ids each at most.
        numbers: fp64, on the host once `ready`: each row's largest logit; its token, -1 where there is none; and the
            rows of `likeliest`.
    """

    states: Sequence[RequestState]
    grammars: Sequence[bytes | SampledToken | None]
    width: int
    ids: torch.Tensor
    explained: Sequence[int]
    count: int
    numbers: torch.Tensor
    ready: torch.cuda.Event | None


def sample_there(
    logits: torch.Tensor,
    states: Sequence[RequestState],
    grammars: Sequence[bytes | SampledToken | None] | None = None,
    best: Sequence[torch.Tensor] | None = None,
) -> list[SampledToken]:
    """As `sampler.sample`, and waits once."""
    return read(queue(logits, states, grammars, best))


def queue(
    logits: torch.Tensor,
    states: Sequence[RequestState],
    grammars: Sequence[bytes | SampledToken | None] | None = None,
    best: Sequence[torch.Tensor] | None = None,
    *,
    explain: bool = True,
) -> Queued:
    """Have the device draw a token from each row of logits ``[len(states), vocabulary]``, and wait for nothing. Takes
    what `sampler.sample` takes. `explain`: with log-probabilities where these are asked for."""
    allowed = grammars or [None] * len(states)
    peaks, ids = best or logits.max(dim=-1)
    drawn = _drawn(logits, ids.long(), states, allowed)
    explained = [row for row, state in enumerate(states) if explain and wants_logprobs(state)]
    count = max((states[row].sampling.logprobs or 0 for row in explained), default=0)
    usable, parts = drawn.clamp_min(0), [peaks.double(), drawn.double()]
    if explained:
        rows = send(np.array(explained, np.int64), logits.device)
        parts.append(likeliest(logits.index_select(0, rows), usable.index_select(0, rows), count).flatten())
    numbers, ready = _to_host(torch.cat(parts))
    return Queued(states, allowed, logits.shape[-1], usable, explained, count, numbers, ready)


def queue_best(peaks: torch.Tensor, ids: torch.Tensor, states: Sequence[RequestState]) -> Queued:
    """The same of rows whose tokens are known on the device: `ids`, int64 ``[rows]``, unless a peak is not finite."""
    numbers, ready = _to_host(torch.cat((peaks.double(), ids.double())))
    return Queued(states, [None] * len(states), 0, ids.clamp_min(0), (), 0, numbers, ready)


def read(queued: Queued) -> list[SampledToken]:
    """The tokens, once they are there."""
    if queued.ready is not None:
        queued.ready.synchronize()
    count, numbers = len(queued.states), queued.numbers.tolist()
    found = zip(queued.states, queued.grammars, numbers[:count], numbers[count : 2 * count], strict=True)
    tokens = [_token(state, grammar, peak, int(id), queued.width) for state, grammar, peak, id in found]
    explained = queued.numbers[2 * count :].view(len(queued.explained), -1).tolist() if queued.explained else []
    for row, logprobs in zip(queued.explained, explained, strict=True):
        if tokens[row].token_id >= 0:
            wanted = queued.states[row].sampling.logprobs or 0
            tokens[row] = tokens[row]._replace(logprobs=read_likeliest(tokens[row].token_id, logprobs, wanted))
    return tokens


def _token(
    state: RequestState, grammar: bytes | SampledToken | None, peak: float, drawn: int, width: int
) -> SampledToken:
    if not math.isfinite(peak):
        return NUMERICAL
    if isinstance(grammar, SampledToken):
        return grammar
    return SampledToken(drawn) if drawn >= 0 else no_token(state, grammar, width)


def _drawn(
    logits: torch.Tensor,
    best: torch.Tensor,
    states: Sequence[RequestState],
    allowed: Sequence[bytes | SampledToken | None],
) -> torch.Tensor:
    """int64 ``[rows]``: each row's token, -1 where there is none. `best`: the ids of the largest logits."""
    plain: list[int] = []
    changed: dict[int, bytes | None] = {}
    for row, (state, grammar) in enumerate(zip(states, allowed, strict=True)):
        if isinstance(grammar, SampledToken):
            continue
        if grammar is not None or reshapes(state):
            changed[row] = grammar
        elif not state.sampling.greedy:
            plain.append(row)
    drawn = [draw_together(logits, states, plain)] if plain else []
    if changed:
        rows = edited(logits, states, [*changed], [*changed.values()])
        drawn.append(draw_together(rows, [states[row] for row in changed], range(len(changed))))
    if not drawn:
        return best
    where = send(np.array([*plain, *changed], np.int64), best.device)
    return best.index_copy(0, where, torch.cat(drawn))


def _to_host(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The same numbers on the host, once the device has come to the event; one that is there needs none."""
    if not numbers.is_cuda:
        return numbers, None
    held = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()
    return held, ready
