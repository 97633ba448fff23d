"""Tokens that a device has drawn and the host does not know yet: kept where they are, and given to the next step there.

A step whose draws depend on nothing but logits, seeds and positions is begun, and only then is the one before it asked
for its tokens. They come through an asynchronous copy that is queued right behind their own step, so whoever waits for
them does not wait for what was queued after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bestiary.nn.sending import send

from .batch import ForwardBatch
from .device_draws import draw_together
from .plan import SampledToken, StepPlan, StepResult
from .sampler import drawn_on_device

_NUMERICAL = SampledToken(token_id=-1, error="numerical")


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that was begun: its result, or what its result will be made of.

    Attributes:
        ids: int64 ``[sampled]`` on the device. numbers: fp64 ``[2, sampled]`` on the host, largest logits and ids, once
            `ready`; None where `result` is known.
    """

    plan: StepPlan
    batch: ForwardBatch | None
    result: StepResult | None = None
    ids: torch.Tensor | None = None
    numbers: torch.Tensor | None = None
    ready: torch.cuda.Event | None = None


def can_wait(batch: ForwardBatch) -> bool:
    """Whether all that a step draws can stay on the device for a while."""
    states = [state for state, _ in batch.sampled]
    return bool(states) and not batch.prompt_rows and all(map(drawn_on_device, states))


def begin(plan: StepPlan, batch: ForwardBatch, logits: torch.Tensor, best: Sequence[torch.Tensor]) -> Begun:
    """Draw a token for each row of logits ``[sampled, vocabulary]``, and wait for nothing. `best`: each row's largest
    logit and its id."""
    states = [state for state, _ in batch.sampled]
    peaks, ids = best[0], best[1].long().clone()
    together = [row for row, state in enumerate(states) if not state.sampling.greedy]
    if together:
        drawn = draw_together(logits, states, together)
        ids.index_copy_(0, send(np.array(together, np.int64), ids.device), drawn)
    numbers, ready = torch.stack((peaks.double(), ids.double())), None
    if numbers.is_cuda:
        numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    for row, state in enumerate(states):
        state.pending = ids, row
    return Begun(plan, batch, ids=ids, numbers=numbers, ready=ready)


def drop(begun: Begun) -> None:
    """Forget a step that was begun: no request has a token of it."""
    for state, _ in begun.batch.sampled if begun.batch else ():
        if state.pending is not None and state.pending[0] is begun.ids:
            state.pending = None


def finish(begun: Begun) -> StepResult:
    """The tokens of a step that was begun, once they are there; its requests are told."""
    if begun.result is not None or begun.batch is None or begun.numbers is None:
        return begun.result or StepResult(begun.plan.step, {})
    if begun.ready is not None:
        begun.ready.synchronize()
    peaks, ids = begun.numbers.tolist()
    sampled = {}
    for (state, _), peak, token in zip(begun.batch.sampled, peaks, ids, strict=True):
        if state.pending is not None and state.pending[0] is begun.ids:
            state.pending = None
        good = math.isfinite(peak) and token >= 0
        sampled[state.request_id] = SampledToken(int(token)) if good else _NUMERICAL
        if good:
            state.append(int(token))
    return StepResult(begun.plan.step, sampled)
