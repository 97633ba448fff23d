"""What became of a step's requests, by what the step computed and drew. No torch, no clock.

The rules, all of them:

* **Token.** A request whose newest known token was computed gets the one that was drawn after it, and may end with it.
* **Failure.** A token that could not be drawn ends its request alone, and what it computed leaves the prefix cache.
* **Waiting.** Where a request's grammar is not ready, its newest token is computed again in the next step, and where
  its grammar allows nothing more it ends without another token.
* **Pooling.** A request that wants a vector ends when its prompt is computed, with the vector in place of a token.

To take several tokens of one request, `record` would return several `SequenceUpdate`s for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from bestiary.api.outputs import FinishReason, TokenLogprobs

from .plan import PooledVector, SampledToken, StepResult
from .roster import Roster
from .sequence import Sequence, SequenceUpdate, Status


def record(roster: Roster, scheduled: Iterable[Sequence], result: StepResult) -> list[SequenceUpdate]:
    """Enter a step's result into its sequences; returns every token and end, in batch order. Those that have ended or
    lost their blocks meanwhile are passed over."""
    updates = []
    for sequence in scheduled:
        if sequence.status is Status.RUNNING:
            update = _advance(roster, sequence, result)
            if update is not None:
                updates.append(update)
    return updates


def _advance(roster: Roster, sequence: Sequence, result: StepResult) -> SequenceUpdate | None:
    start, count, sequence.num_scheduled = sequence.num_computed, sequence.num_scheduled, 0
    end, kv = start + count, roster.kv
    if sequence.prompt_logprobs is not None:
        entries = result.prompt_logprobs.get(sequence.request_id, [])
        if not sequence.add_prompt_logprobs(start, count, entries):
            return _fail(roster, sequence, "prompt log-probabilities are missing")
    token: SampledToken | PooledVector | None = None
    if end == len(sequence.token_ids):
        token = result.last(sequence.request_id)
        if token is None:
            return _fail(roster, sequence, "no token was drawn" if sequence.pooling is None else "no vector was made")
        if token.error is not None:
            return _fail(roster, sequence, token.error)
    waits = isinstance(token, SampledToken) and token.instead == "wait"
    if waits and kv.states is not None:
        return None  # a state is after all of these tokens or before them
    sequence.num_computed = end - waits
    kv.register_computed(sequence)
    if waits:
        return None
    kv.advance_state(sequence)
    if token is None:
        return None
    return _pooled(roster, sequence, token) if isinstance(token, PooledVector) else _append(roster, sequence, token)


def _append(roster: Roster, sequence: Sequence, token: SampledToken) -> SequenceUpdate:
    token_id = token.token_id
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    if sequence.prompt_logprobs is not None:
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
    if token.instead == "end":
        roster.end(sequence)
        last = SequenceUpdate(sequence.request_id, prompt_logprobs=prompt_logprobs)
        return last_update(sequence, "stop", update=last)
    sequence.token_ids.append(token_id)
    finish_reason, stop_reason = sequence.finish_of(token_id)
    update = SequenceUpdate(
        sequence.request_id, token_id, token.logprobs, prompt_logprobs, cached_tokens=sequence.cached_tokens
    )
    if finish_reason is None:
        return update
    roster.end(sequence)
    return last_update(sequence, finish_reason, stop_reason, update=update)


def _pooled(roster: Roster, sequence: Sequence, vector: PooledVector) -> SequenceUpdate:
    roster.end(sequence)
    return last_update(sequence, "stop", update=SequenceUpdate(sequence.request_id, pooled=vector.data))


def _fail(roster: Roster, sequence: Sequence, error: str) -> SequenceUpdate:
    roster.end(sequence, forget=True)
    return last_update(sequence, "error", error=error)


def last_update(
    sequence: Sequence,
    finish_reason: FinishReason,
    stop_reason: str | int | None = None,
    error: str | None = None,
    update: SequenceUpdate | None = None,
) -> SequenceUpdate:
    """The update that ends `sequence`: `update`, if its last token comes with it, and how it went."""
    return (update or SequenceUpdate(sequence.request_id))._replace(
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        error=error,
        cached_tokens=sequence.cached_tokens,
        preemptions=sequence.preemptions,
    )
