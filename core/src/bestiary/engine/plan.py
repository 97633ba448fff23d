"""The arrows between scheduler and executor: small frozen values without tensors, cheap to send.

A `StepPlan` names requests by id. Whoever executes it keeps the tokens of each request it was told of (`new`), appends
what it samples, and forgets a request when `finished` names it. So a plan never repeats a prompt, and a worker can run
ahead of the ids it has not reported yet.

The two that are made for every request in every step are named tuples, which cost half as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bestiary.api.outputs import TokenLogprobs
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request the executor has not seen. `seed` is final: draws are keyed by it and the token's position.

    `eos_token_ids` are banned while fewer than `sampling.min_tokens` tokens were drawn. `lora_name` is the id of its
    adapter, which is in a slot whenever the request is among a plan's items. Where `pooling` is given, a vector is made
    of the prompt, and nothing is drawn.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    lora_name: str | None = None
    pooling: PoolingParams | None = None


class ScheduledItem(NamedTuple):
    """Compute tokens `start … start + count - 1` of one request.

    Attributes:
        block_ids: the request's whole block table; token i lives in block `block_ids[i // block_size]`.
        samples: whether the last of these tokens is the newest known one, so that a token is drawn after it, or the
            request's vector is made.
        state_read, state_write: the rows of layers' states with the request's state before and after these tokens; −1
            for the first where it begins, and for both in models that have none.
    """

    request_id: str
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    block_ids: tuple[int, ...]
    samples: bool
    state_read: int = -1
    state_write: int = -1


class LoRALoad(NamedTuple):
    """Put the adapter with this id into a slot, in place of what is there."""

    slot: int
    lora_id: str


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: items in batch order.

    The executor applies `finished` first, then `new`: an id may end and come back in one plan. After a step that failed
    as a whole both are said again, so it ignores the end of a request it does not know; `lora_loads` likewise.
    """

    step: int
    items: tuple[ScheduledItem, ...]
    new: tuple[NewRequest, ...] = ()
    finished: tuple[str, ...] = ()
    lora_loads: tuple[LoRALoad, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(item.count for item in self.items)


class SampledToken(NamedTuple):
    """One drawn token. `error` says why none could be drawn (``"numerical"``: NaN or Inf in its logits).

    `instead` says what happens in place of a token though nothing went wrong: the answer ends, for its grammar allows
    nothing more; or its grammar is not ready, and what was computed last is computed once more.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    instead: Literal["end", "wait"] | None = None


class PooledVector(NamedTuple):
    """What was made of a prompt: numbers in float32, in this machine's byte order. `error` says why there are none."""

    data: bytes
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: one token, or one vector, for every item that samples; prompt log-probabilities as they
    become known.

    `prompt_logprobs[request_id]` follows from the item alone: computing tokens ``start … start + count - 1`` gives one
    entry for each prompt token from ``start + 1`` to ``start + count``, as far as the prompt goes (its first token has
    none). After a preemption some come twice; the scheduler drops them. Once a token was drawn, none are looked at.
    """

    step: int
    sampled: dict[str, SampledToken]
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    pooled: dict[str, PooledVector] = field(default_factory=dict)

    def last(self, request_id: str) -> SampledToken | PooledVector | None:
        """What came of a request's newest token."""
        return self.sampled.get(request_id) or self.pooled.get(request_id)
