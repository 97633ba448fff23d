"""`Sequence`: one answer being made, and `SequenceUpdate`: what one step did to it. No torch.

A request with ``n`` answers becomes `n` sequences (`SamplingParams.child`), so here ``sampling.n`` is always 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from bestiary.api.outputs import FinishReason, TokenLogprobs
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams


class Status(Enum):
    """NEW → WAITING ⇄ RUNNING → FINISHED; from every state there is a way to FINISHED."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class SequenceUpdate(NamedTuple):
    """One event of one request: a token, a vector, the end, or several of these.

    Attributes:
        token_id: the new token; None where the request ended without one (abort, error, stop string).
        logprobs: of that token, where asked for.
        prompt_logprobs: once, with the first token, where asked for; one entry a prompt token, None for the first.
        finish_reason: set in a request's last update and in no other.
        stop_reason: the stop id or stop string that ended it; None for an end-of-sequence id.
        error: why `finish_reason` is ``"error"``.
        cached_tokens: prompt tokens taken from the prefix cache; in every update with a token, and in the last.
        preemptions: in the last update: how often the request lost its blocks.
        pooled: in the last update of a request that wanted a vector: its numbers in float32.
    """

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    pooled: bytes | None = None


class Sequence:
    """Tokens, parameters and progress of one request; owned by the scheduler from `Scheduler.add` on.

    There is no prefill and no decode: `num_computed` tokens have their keys and values in the cache, `total` are known,
    and a step that computes the last known one draws the next.

    Attributes:
        token_ids: the prompt (the first `num_prompt`), then what was drawn.
        seed: final; draws are keyed by it and the position.
        pooling: what vector is made of the prompt, after which the request ends; None where text is generated.
        priority: lower is served first; ties in order of arrival. `rank` is (priority, arrival).
        eos_token_ids: end-of-sequence ids of the model. stop_ids: all ids that end this answer.
        lora_name, cache_salt, prompt_salt: cached blocks are shared only where all agree. The first is the id of an
            adapter, in which its content counts; the last is the model's word on this length of prompt, set at
            admission.
        leader: a sibling with the same prompt (``n`` > 1), whose computed prompt this one would rather wait for.
        max_total: prompt and answer together, in tokens; fixed at admission.
        num_scheduled: tokens of the step in flight, 0 while in none.
        sent: whether the executor was told of this request.
        cached_tokens: taken from the prefix cache when first admitted. preemptions: how often it lost its blocks.
        prompt_logprobs: those known so far; None where not asked for or already delivered.
        block_table, block_ids, capacity, digests, num_registered: written by `KVCacheManager` alone: the blocks, the
            same as a tuple, the tokens they hold, digests of the full blocks of `token_ids`, and how many of the
            table's blocks are known to the prefix cache.
        state_row, next_row, ahead_row, checkpoint: written by `StateRows` alone: where layers keep its state, where its
            next step puts it, and the one upon that; and the digest of the answer's newest checkpoint.
    """

    __slots__ = (
        "ahead_row",
        "block_ids",
        "block_table",
        "cache_salt",
        "cached_tokens",
        "capacity",
        "checkpoint",
        "digests",
        "eos_token_ids",
        "leader",
        "lora_name",
        "max_total",
        "min_total",
        "next_row",
        "num_computed",
        "num_prompt",
        "num_registered",
        "num_scheduled",
        "pooling",
        "preemptions",
        "priority",
        "prompt_logprobs",
        "prompt_salt",
        "rank",
        "request_id",
        "sampling",
        "seed",
        "sent",
        "state_row",
        "status",
        "stop_ids",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Iterable[int],
        sampling: SamplingParams,
        *,
        seed: int = 0,
        priority: int = 0,
        eos_token_ids: Iterable[int] = (),
        lora_name: str | None = None,
        cache_salt: str | None = None,
        leader: Sequence | None = None,
        pooling: PoolingParams | None = None,
    ) -> None:
        self.request_id = request_id
        self.token_ids = list(prompt_token_ids)
        self.num_prompt = len(self.token_ids)
        self.sampling = sampling
        self.seed = seed
        self.priority = priority
        self.rank = (priority, 0)
        self.eos_token_ids = tuple(eos_token_ids)
        self.stop_ids = frozenset(sampling.stop_token_ids) | frozenset(
            () if sampling.ignore_eos else self.eos_token_ids
        )
        self.lora_name = lora_name
        self.cache_salt = cache_salt
        self.prompt_salt: str | None = None
        self.leader = leader
        self.pooling = pooling
        self.min_total = self.num_prompt + sampling.min_tokens
        self.max_total = 0
        self.status = Status.NEW
        self.sent = False
        self.num_computed = 0
        self.num_scheduled = 0
        self.cached_tokens = 0
        self.preemptions = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if sampling.prompt_logprobs is None else [None]
        self.block_table: list[int] = []
        self.block_ids: tuple[int, ...] = ()
        self.capacity = 0
        self.digests: list[bytes] = []
        self.num_registered = 0
        self.state_row = self.next_row = self.ahead_row = -1
        self.checkpoint: bytes | None = None

    @property
    def total(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return tuple(self.token_ids[: self.num_prompt])

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def max_matched(self) -> int:
        """How many leading tokens may come from the prefix cache.

        One is always computed, for there is nothing to draw from otherwise. Prompt log-probabilities come out of
        computing the token before, so what is still owed of them must be computed.
        """
        return self.total - 1 if self.prompt_logprobs is None else min(self.total, len(self.prompt_logprobs)) - 1

    def add_prompt_logprobs(self, start: int, count: int, entries: list[TokenLogprobs]) -> bool:
        """Take what computing tokens ``start … start + count - 1`` tells of the prompt; False if `entries` do not fit.

        After a preemption the first of them are known already and are dropped.
        """
        if self.prompt_logprobs is None:
            return True
        known = len(self.prompt_logprobs) - 1
        if len(entries) != min(start + count, self.num_prompt - 1) - start:
            return False
        self.prompt_logprobs.extend(entries[known - start :])
        return True

    def finish_of(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """(finish_reason, stop_reason) after `token_id`, the newest token, was appended to `token_ids`."""
        total = len(self.token_ids)
        if token_id in self.stop_ids and total >= self.min_total:
            is_eos = token_id in self.eos_token_ids and not self.sampling.ignore_eos
            return "stop", None if is_eos else token_id
        return ("length", None) if total >= self.max_total else (None, None)
