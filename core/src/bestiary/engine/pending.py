"""Steps that were begun and have not told their tokens: these are kept on the device, and given to the next step there.

A step is begun, and only then is the one before it asked for its tokens. They come through an asynchronous copy that is
queued right behind their own step, so whoever waits for them does not wait for what was queued after it. What is drawn
by more than logits, seeds and positions (a penalty, a form) needs the tokens of the step before: its draws are queued
when these are there, which is while the device computes the step itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bestiary.nn.ops.sampling import best_tokens

from .batch import ForwardBatch
from .device_sampler import Queued, queue, read
from .plan import StepPlan, StepResult
from .sampler import needs_history
from .structured.follower import Grammars


@dataclass(slots=True)
class Begun:
    """A step that was begun: its result, or what its result will be made of.

    Attributes:
        logits: ``[sampled, vocabulary]`` on the device, alone or with each row's largest and its id, until draws are
            `queued`.
        error: what was raised when they should have been.
    """

    plan: StepPlan
    batch: ForwardBatch | None
    result: StepResult | None = None
    logits: Sequence[torch.Tensor] = ()
    queued: Queued | None = None
    error: BaseException | None = None


def can_wait(batch: ForwardBatch) -> bool:
    """Whether all that a step makes can stay on the device for a while."""
    return bool(batch.sampled) and not batch.prompt_rows


def can_draw(batch: ForwardBatch) -> bool:
    """Whether a step can be drawn while the tokens of the one before it are not known."""
    return not any(state.pending is not None and needs_history(state) for state, _ in batch.sampled)


def draw_begun(begun: Begun, grammars: Grammars | None) -> None:
    """Queue the draws of a step, and wait for nothing but its grammars."""
    if begun.batch is None or not begun.logits:
        return
    states = [state for state, _ in begun.batch.sampled]
    logits, *best = begun.logits
    if grammars is not None:
        grammars.begin(states)
    allowed = None if grammars is None else grammars.allowed(states)
    begun.queued = queue(logits, states, allowed, best or best_tokens(logits))
    begun.logits = ()
    for row, state in enumerate(states):
        state.pending = begun.queued.ids, row


def drop(begun: Begun) -> None:
    """Forget a step that was begun: no request has a token of it."""
    for state, _ in begun.batch.sampled if begun.batch else ():
        if begun.queued is not None and state.pending is not None and state.pending[0] is begun.queued.ids:
            state.pending = None


def finish(begun: Begun) -> StepResult:
    """The tokens of a step that was begun, once they are there; its requests are told. A token that was drawn upon one
    that never came to be is nobody's."""
    if begun.error is not None:
        raise begun.error
    if begun.result is not None or begun.batch is None or begun.queued is None:
        return begun.result or StepResult(begun.plan.step, {})
    tokens = read(begun.queued)
    drop(begun)
    ends, sampled = {item.request_id: item.start + item.count for item in begun.plan.items}, {}
    for (state, _), token in zip(begun.batch.sampled, tokens, strict=True):
        if ends[state.request_id] != len(state.tokens):
            continue
        sampled[state.request_id] = token
        if token.token_id >= 0:
            state.append(token.token_id)
    return StepResult(begun.plan.step, sampled)
