"""Steps that were begun and have not told their tokens: these are kept on the device, and given to the next step there.

A step is begun, and only then is the one before it asked for its tokens. They come through an asynchronous copy that is
queued right behind their own step, so whoever waits for them does not wait for what was queued after it. What is drawn
by more than logits, seeds and positions (a penalty, a form) needs the tokens of the step before: its draws are queued
when these are there, which is while the device computes the step itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bestiary.nn.graphs import Results
from bestiary.nn.ops.sampling import best_tokens

from .batch import ForwardBatch
from .device_sampler import Queued, queue, queue_best, read
from .plan import StepPlan, StepResult
from .sampler import needs_history
from .structured.follower import Grammars
from .vocabulary import BestTokens, sampled_rows


@dataclass(slots=True)
class Begun:
    """A step that was begun: its result, or what its result will be made of.

    Attributes:
        made: what it is drawn from, until draws are `queued`.
        error: what was raised when they should have been.
    """

    plan: StepPlan
    batch: ForwardBatch | None
    result: StepResult | None = None
    made: torch.Tensor | Results | BestTokens | None = None
    queued: Queued | None = None
    error: BaseException | None = None


def can_wait(batch: ForwardBatch) -> bool:
    """Whether all that a step makes can stay on the device for a while."""
    return bool(batch.sampled) and not batch.prompt_rows


def can_draw(batch: ForwardBatch) -> bool:
    """Whether a step can be drawn while the tokens of the one before it are not known."""
    return not any(state.pending is not None and needs_history(state) for state, _ in batch.sampled)


def draw_begun(begun: Begun, grammars: Grammars | None, explain: bool = True) -> None:
    """Queue the draws of a step, and wait for nothing but its grammars. `explain`: whether anybody will read more than
    its tokens here."""
    if begun.batch is None or begun.made is None:
        return
    states, made = [state for state, _ in begun.batch.sampled], begun.made
    if isinstance(made, BestTokens):
        best_of = sampled_rows(made, begun.batch.sampled)
        begun.queued = queue_best(best_of.logits, best_of.ids, states)
    else:
        logits, *best = made if isinstance(made, tuple) else (made,)
        if grammars is not None:
            grammars.begin(states)
        allowed = None if grammars is None else grammars.allowed(states)
        begun.queued = queue(logits, states, allowed, best or best_tokens(logits), explain=explain)
    begun.made = None
    for row, state in enumerate(states):
        state.pending = begun.queued.ids, row


def drop(begun: Begun) -> None:
    """Forget a step that was begun: no request has a token of it."""
    for state, _ in begun.batch.sampled if begun.batch else ():
        if begun.queued is not None and state.pending is not None and state.pending[0] is begun.queued.ids:
            state.pending = None


def told(begun: Begun) -> StepResult:
    """The tokens of a step that was begun, once they are there."""
    if begun.error is not None:
        raise begun.error
    if begun.result is not None or begun.batch is None or begun.queued is None:
        return begun.result or StepResult(begun.plan.step, {})
    names = (state.request_id for state, _ in begun.batch.sampled)
    return StepResult(begun.plan.step, dict(zip(names, read(begun.queued), strict=True)))


def settle(begun: Begun, result: StepResult) -> StepResult:
    """Tell a step's requests their tokens; which these are. One that was drawn upon one that never came to be is
    nobody's."""
    if begun.queued is None or begun.batch is None:
        return result
    drop(begun)
    ends, sampled = {item.request_id: item.start + item.count for item in begun.plan.items}, {}
    for state, _ in begun.batch.sampled:
        if ends[state.request_id] == len(state.tokens):
            token = sampled[state.request_id] = result.sampled[state.request_id]
            if token.token_id >= 0:
                state.append(token.token_id)
    return StepResult(begun.plan.step, sampled)
