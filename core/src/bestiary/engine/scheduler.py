"""`Scheduler`: which tokens of which requests the next step computes, and what became of them. No torch, no clock.

The rules, all of them:

* **Order.** Everything goes by rank: (priority, arrival), lower first. Running requests come before waiting ones of the
  same priority; a waiting request of a better priority comes before running ones of a worse one.
* **Budget.** A step computes at most `max_num_batched_tokens` tokens for at most `max_num_seqs` running requests. A
  prompt longer than what is left is computed in pieces, or, without chunked prefill, waits for a step with room. What
  a preemption made longer than the whole budget is computed in pieces even then, the first of them with all of its
  prompt.
* **Admission.** A waiting request is admitted when all tokens it has now fit into free blocks (they are not reserved).
  The best-ranked one that does not fit keeps all behind it waiting, so nobody is overtaken for ever. A request lets its
  leader (a sibling with the same prompt) compute the prompt first, for then it finds that in the prefix cache.
* **Adapters.** A request with an adapter runs when that has a slot, or can get one (`adapters.py`). While one waits for
  a slot, of those behind it only requests without an adapter are admitted, so that slots become free; requests of a
  strictly worse priority give theirs up, all those of one adapter. In one step no request with an adapter is looked at
  again after others were admitted.
* **Preemption.** Where a running request lacks a block, the worst-ranked running one gives up all of its own; it keeps
  its tokens and computes them again later, as if they were its prompt. Where a waiting request lacks a block or a
  place, only running ones of a strictly worse priority give way. The best-ranked running request is never preempted for
  another, and one alone always fits (`admission.py`); so it ends, and then the next one does.
* **Failure.** A token that could not be drawn ends its request alone, and what it computed leaves the prefix cache.
* **Waiting.** Where a request's grammar is not ready, its newest token is computed again in the next step, and where
  its grammar allows nothing more it ends without another token.
* **Pooling.** A request that wants a vector ends when its prompt is computed, with the vector in place of a token.

* **Flight.** Up to `depth` plans are in flight, as many as a pipeline has stages, with different requests in each;
  their results come back in order. Each takes its share of the requests, so that no stage idles. What is in flight is
  neither planned again nor preempted.

* **Ahead.** Where `schedule_ahead` is asked, a second plan is made upon the one in flight before that has told its
  tokens (`ahead.py`); the same rules come to the same answers, for it is only made where they leave no choice.

To take several tokens of one request, `update` returns several `SequenceUpdate`s for it.

A step is `schedule`, execution, `update`; between the two a request may be aborted, and its result is then ignored.
All of it is a function of the calls made: the same calls give the same plans.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import NamedTuple

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.outputs import FinishReason, TokenLogprobs

from .adapters import Adapters, SlotTable
from .admission import Limits
from .ahead import continued
from .kv_cache import KVCacheManager, KVCacheUsage
from .plan import NewRequest, PooledVector, SampledToken, ScheduledItem, StepPlan, StepResult
from .sequence import Sequence, SequenceUpdate, Status
from .state_rows import StateRows


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Requests running and waiting now, preemptions so far, and the state of the KV cache."""

    running: int
    waiting: int
    preemptions: int
    kv_cache: KVCacheUsage


class _Flight(NamedTuple):
    """A plan that was given out, and its sequences in the order of its items."""

    plan: StepPlan
    scheduled: list[Sequence]


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Scheduler:
    """Owns every live `Sequence` and, through `KVCacheManager`, their blocks."""

    def __init__(
        self,
        scheduler_config: SchedulerConfig,
        cache_config: CacheConfig,
        max_model_len: int,
        num_blocks: int,
        prompt_salt: Callable[[int], str | None] | None = None,
        depth: int = 1,
        adapters: Adapters | None = None,
        num_state_rows: int | None = None,
    ) -> None:
        """`prompt_salt` is asked, for each length of a prompt, among which others its cached blocks may be shared.
        Without `adapters`, requests may name any, and none has to be in a slot. `num_state_rows`: of models with
        states, at least two for each of `max_num_seqs`; None for others."""
        self._adapters = adapters or Adapters()
        self._slots = SlotTable(None if self._adapters.config is None else self._adapters.config.max_loras)
        self._depth = depth
        self._config = scheduler_config
        self._prompt_salt = prompt_salt
        self._kv = KVCacheManager(
            num_blocks, cache_config.block_size, prefix_caching=cache_config.enable_prefix_caching,
            states=None if num_state_rows is None else StateRows(num_state_rows),
        )  # fmt: skip
        self.limits = Limits(
            max_model_len=max_model_len,
            cache_tokens=num_blocks * cache_config.block_size,
            max_prompt=None if scheduler_config.enable_chunked_prefill else scheduler_config.max_num_batched_tokens,
        )
        self._live: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # both by rank
        self._running: list[Sequence] = []
        self._arrivals = 0
        self._preemptions = 0
        self._steps = 0
        self._unreported: list[str] = []  # ended, and the executor does not know
        self._flights: deque[_Flight] = deque()  # oldest first
        self._left_out: Set[str] = frozenset()  # of the step that is being chosen

    # --- requests -------------------------------------------------------------------------------------------------

    def add(self, *sequences: Sequence) -> None:
        """Queue one request, or several (the children of one with ``n`` > 1), all or none.

        Raises:
            RequestError: it can never run (`admission.py`), its id is in use, or the queue is full.
        """
        room = self._config.max_queue
        if room is not None and len(self._waiting) + len(sequences) > room:
            raise RequestError("too many requests are waiting", code="QUEUE_FULL", field="max_queue", limit=room)
        limits = [self.limits.check(sequence) for sequence in sequences]
        ids: set[str] = set()
        for name in [sequence.request_id for sequence in sequences]:
            if name in self._live or name in ids:
                raise RequestError("the request id is in use", code="DUPLICATE_REQUEST", field="request_id", value=name)
            ids.add(name)
        for sequence, limit in zip(sequences, limits, strict=True):
            sequence.max_total = limit
            sequence.prompt_salt = self._prompt_salt(sequence.num_prompt) if self._prompt_salt else None
            self._adapters.begin(sequence.lora_name)
            sequence.rank = (sequence.priority, self._arrivals)
            self._arrivals += 1
            self._live[sequence.request_id] = sequence
            self._wait(sequence)

    def abort(self, request_id: str) -> SequenceUpdate | None:
        """End a request now. Returns its last update, or None if it is not live (unknown, or ended before)."""
        return self.finish(request_id, "abort")

    def finish(
        self,
        request_id: str,
        finish_reason: FinishReason,
        stop_reason: str | int | None = None,
        error: str | None = None,
    ) -> SequenceUpdate | None:
        """Like `abort`, for any reason found outside: a stop string in the text, a dead executor."""
        sequence = self._live.get(request_id)
        if sequence is None:
            return None
        self._end(sequence)
        return _last(sequence, finish_reason, stop_reason, error)

    def fail_all(self, error: str) -> list[SequenceUpdate]:
        """End every request with `error`."""
        return [update for name in list(self._live) if (update := self.finish(name, "error", error=error))]

    def has_unfinished(self) -> bool:
        return bool(self._live)

    def is_live(self, request_id: str) -> bool:
        return request_id in self._live

    @property
    def num_live(self) -> int:
        return len(self._live)

    def slot_of(self, lora_id: str) -> int | None:
        """The slot that an adapter is in."""
        return self._slots.slot_of(lora_id)

    def forget_adapter(self, lora_id: str) -> None:
        """An adapter that no request wants was removed."""
        self._slots.forget(lora_id)

    def has_unreported(self) -> bool:
        """Whether the executor still holds ended requests; the next plan names them, even one without items."""
        return bool(self._unreported)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(len(self._running), len(self._waiting), self._preemptions, self._kv.usage())

    def clear_prefix_cache(self) -> None:
        """Forget all cached content; what runs goes on."""
        self._kv.clear_prefix_cache()

    # --- a step ---------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether as many plans are in flight as there may be."""
        return len(self._flights) >= self._depth

    def schedule(self, only: Set[str] | None = None) -> StepPlan | None:
        """The next step. It must come back through `update` or `abandon`, as one of at most `depth` in flight.

        Args:
            only: the requests that it may be about; None is all of them.

        None where others are in flight and nothing can be added to them.
        """
        if self.is_full:
            raise EngineError(f"step {self._flights[-1].plan.step} is still in flight")
        self._left_out = frozenset() if only is None else self._live.keys() - only
        scheduled = self._choose()
        if self._flights and not scheduled:
            return None
        items = tuple(
            [ScheduledItem(s.request_id, s.num_computed, s.num_scheduled, s.block_ids, _samples(s)) for s in scheduled]
        )
        if self._kv.states is not None:
            items = tuple(map(self._with_rows, items, scheduled))
        new = tuple([_introduce(sequence) for sequence in scheduled if not sequence.sent])
        return self._give_out(items, scheduled, new)

    def schedule_ahead(self) -> StepPlan | None:
        """The step after the only one in flight, whose tokens are not known yet; None where that is not known either.

        It must come back as the other does, after it.
        """
        if len(self._flights) != 1 or self._depth > 1:
            return None
        flight = self._flights[0]
        room = len(self._running) < self._config.max_num_seqs
        others = any(not each.num_scheduled for each in self._running)
        urgent = self._waiting and self._running and self._waiting[0].priority < self._running[-1].priority
        if others or urgent or (room and self._waiting):
            return None
        found = continued(flight.plan.items, flight.scheduled, self._kv)
        if found is None:
            return None
        return self._give_out(tuple([item for _, item in found]), [sequence for sequence, _ in found], ())

    def _give_out(
        self, items: tuple[ScheduledItem, ...], scheduled: list[Sequence], new: tuple[NewRequest, ...]
    ) -> StepPlan:
        finished: tuple[str, ...] = ()
        if self._unreported:
            finished = tuple(self._unreported)
            self._unreported.clear()
        plan = StepPlan(self._steps, items, new, finished, self._slots.take_loads())
        self._flights.append(_Flight(plan, scheduled))
        self._steps += 1
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Record what `plan`, the oldest in flight, computed and drew; returns every token and end, in batch order."""
        if not self._flights or plan is not self._flights[0].plan or result.step != plan.step:
            raise EngineError(f"plan {plan.step} and result {result.step} are not the step in flight")
        scheduled = self._flights.popleft().scheduled
        updates: list[SequenceUpdate] = []
        for sequence in scheduled:
            if sequence.status is not Status.RUNNING:
                continue
            start, count, sequence.num_scheduled = sequence.num_computed, sequence.num_scheduled, 0
            request_id = sequence.request_id
            if sequence.prompt_logprobs is not None:
                entries = result.prompt_logprobs.get(request_id, [])
                if not sequence.add_prompt_logprobs(start, count, entries):
                    updates.append(self._fail(sequence, "prompt log-probabilities are missing"))
                    continue
            token: SampledToken | PooledVector | None = None
            if start + count == len(sequence.token_ids):
                token = result.last(request_id)
                nothing = "no token was drawn" if sequence.pooling is None else "no vector was made"
                error = nothing if token is None else token.error
                if error is not None:
                    updates.append(self._fail(sequence, error))
                    continue
            waits = isinstance(token, SampledToken) and token.instead == "wait"
            if waits and self._kv.states is not None:
                continue  # a state is after all of these tokens or before them
            sequence.num_computed = start + count - waits
            self._kv.register_computed(sequence)
            if waits:
                continue
            self._kv.advance_state(sequence)
            if isinstance(token, PooledVector):
                updates.append(self._pooled(sequence, token))
            elif token is not None:
                updates.append(self._append(sequence, token))
        if self._flights:
            self._take_up(self._flights[0])
        return updates

    def _take_up(self, flight: _Flight) -> None:
        """The requests of a plan that was made ahead are in flight with it alone now."""
        for sequence, item in zip(flight.scheduled, flight.plan.items, strict=True):
            if sequence.status is Status.RUNNING:
                sequence.num_scheduled = item[2]

    def abandon(self, plan: StepPlan) -> None:
        """`plan`, the newest, failed as a whole: nothing of it was computed, and the next will say all of it again.

        The executor may or may not have read it, so it is told to forget what was new before it hears of it again.
        """
        if not self._flights or plan is not self._flights[-1].plan:
            raise EngineError(f"plan {plan.step} is not the step in flight")
        new = [request.request_id for request in plan.new]
        for sequence in self._flights.pop().scheduled:
            sequence.sent = sequence.sent and sequence.request_id not in new
            if not any(sequence in flight.scheduled for flight in self._flights):
                sequence.num_scheduled = 0
        self._unreported += [*plan.finished, *new]
        self._slots.give_back(plan.lora_loads)

    def _with_rows(self, item: ScheduledItem, sequence: Sequence) -> ScheduledItem:
        """The item of a model with states."""
        if self._kv.states is None:
            return item
        read, write = self._kv.states.schedule(sequence)
        return item._replace(state_read=read, state_write=write)

    # --- choosing -------------------------------------------------------------------------------------------------

    def _choose(self) -> list[Sequence]:
        """The next step's sequences in order of rank, each with its `num_scheduled` tokens and blocks for them."""
        budget = self._config.max_num_batched_tokens
        scheduled: list[Sequence] = []
        running = self._running
        candidate = self._candidate()
        index, share = 0, self._share()
        while budget and len(scheduled) < share:
            if index < len(running) and self._stays(running[index]):
                index += 1
                continue
            if index < len(running) and (candidate is None or running[index].priority <= candidate.priority):
                sequence = running[index]
                start = sequence.num_computed
                count = len(sequence.token_ids) - start
                if count > budget:
                    if self._least(sequence, count) > budget:  # its first step was lost, and others came in between
                        break
                    count = budget
                if count > 1:
                    count = self._piece(sequence, count)
                if start + count > sequence.capacity and not self._kv.allocate(sequence, start + count):
                    candidate = None  # where blocks are short, nobody is admitted
                    if not self._make_room(sequence, start + count):
                        break
            elif candidate is not None:
                sequence = candidate
                rank = sequence.rank
                count = self._admit(sequence, budget)
                candidate = self._candidate(rank) if count else None
                if not count:
                    continue
            else:
                break
            sequence.num_scheduled = count
            scheduled.append(sequence)
            budget -= count
            index += 1
        return scheduled

    def _piece(self, sequence: Sequence, count: int) -> int:
        return self._kv.piece(sequence, count) if self._config.enable_chunked_prefill else count

    def _stays(self, sequence: Sequence) -> bool:
        """Whether a running sequence is in flight, or left out of this step."""
        return sequence.num_scheduled > 0 or sequence.request_id in self._left_out

    def _share(self) -> int:
        """The most sequences of one plan: what leaves as many for each of the others in flight."""
        return -(-min(len(self._live), self._config.max_num_seqs) // self._depth)

    def _candidate(self, after: tuple[int, int] | None = None) -> Sequence | None:
        """The best-ranked waiting sequence that waits neither for its leader nor for a slot; with an adapter, one that
        is ranked behind `after`."""
        short_of_slots = False
        for sequence in self._waiting:
            if sequence.request_id in self._left_out or self._defers(sequence):
                continue
            if sequence.lora_name is None:
                return sequence
            passed = after is not None and sequence.rank <= after
            if not short_of_slots and not passed and self._has_slot(sequence, sequence.lora_name):
                return sequence
            short_of_slots = True
        return None

    def _has_slot(self, sequence: Sequence, lora_id: str) -> bool:
        """Whether a waiting sequence's adapter is in a slot or can be put into one, if need be into one that requests
        of a worse priority hold: that of the adapter whose best request is ranked worst."""
        if self._slots.has_place(lora_id):
            return True
        best: dict[str, Sequence] = {}
        for running in self._running:
            if running.lora_name is not None:
                best.setdefault(running.lora_name, running)
        busy = {running.lora_name for running in self._running if running.num_scheduled}
        idle = [running for running in best.values() if running.lora_name not in busy]
        victim = max(idle, key=_rank, default=None)
        if victim is None or victim.priority <= sequence.priority:
            return False
        for running in [each for each in self._running if each.lora_name == victim.lora_name]:
            self._preempt(running)
        return True

    def _defers(self, sequence: Sequence) -> bool:
        leader = sequence.leader
        if leader is None or leader.status is not Status.RUNNING or not self._kv.prefix_caching:
            return False
        return leader.num_computed < sequence.max_matched // self._kv.block_size * self._kv.block_size

    def _least(self, sequence: Sequence, count: int) -> int:
        """How many of the `count` tokens that are left of a sequence must be computed in one step."""
        if self._config.enable_chunked_prefill:
            return 1
        if sequence.total <= self._config.max_num_batched_tokens:
            return count
        return max(1, sequence.num_prompt - (sequence.total - count))

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Move a waiting sequence to the running ones; returns how many tokens to compute, 0 if it must wait."""
        while True:
            if len(self._running) < self._config.max_num_seqs:
                count = sequence.total - self._kv.match_prefix(sequence)
                too_long = self._least(sequence, count) > budget
                if self._kv.fits(sequence, sequence.total) and not too_long:
                    break
                self._kv.free(sequence)
                if too_long:
                    return 0
            worst = self._running[-1] if self._running else None
            if worst is None or worst.priority <= sequence.priority or worst.num_scheduled:
                return 0
            self._preempt(worst)
        if sequence.preemptions == 0:
            self._kv.count_admission(sequence)
        sequence.leader = None
        count = self._piece(sequence, min(count, budget))
        self._kv.allocate(sequence, sequence.num_computed + count)
        _remove(self._waiting, sequence)
        self._slots.hold(sequence.lora_name)
        insort(self._running, sequence, key=_rank)
        sequence.status = Status.RUNNING
        return count

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for a running sequence, taken from the worst-ranked; False if it had to give up its own."""
        while not self._kv.allocate(sequence, num_tokens):
            victim = next(each for each in reversed(self._running) if not each.num_scheduled)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    # --- changes of state -----------------------------------------------------------------------------------------

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self._waiting, sequence, key=_rank)

    def _preempt(self, sequence: Sequence) -> None:
        _remove(self._running, sequence)
        self._slots.release(sequence.lora_name)
        self._kv.free(sequence)
        sequence.preemptions += 1
        self._preemptions += 1
        self._wait(sequence)

    def _append(self, sequence: Sequence, token: SampledToken) -> SequenceUpdate:
        token_id = token.token_id
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if sequence.prompt_logprobs is not None:
            prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        if token.instead == "end":
            self._end(sequence)
            last = SequenceUpdate(sequence.request_id, prompt_logprobs=prompt_logprobs)
            return _last(sequence, "stop", update=last)
        sequence.token_ids.append(token_id)
        finish_reason, stop_reason = sequence.finish_of(token_id)
        update = SequenceUpdate(
            sequence.request_id, token_id, token.logprobs, prompt_logprobs, cached_tokens=sequence.cached_tokens
        )
        if finish_reason is None:
            return update
        self._end(sequence)
        return _last(sequence, finish_reason, stop_reason, update=update)

    def _pooled(self, sequence: Sequence, vector: PooledVector) -> SequenceUpdate:
        self._end(sequence)
        return _last(sequence, "stop", update=SequenceUpdate(sequence.request_id, pooled=vector.data))

    def _fail(self, sequence: Sequence, error: str) -> SequenceUpdate:
        self._end(sequence, forget=True)
        return _last(sequence, "error", error=error)

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        running = sequence.status is Status.RUNNING
        _remove(self._running if running else self._waiting, sequence)
        if running:
            self._slots.release(sequence.lora_name)
        self._adapters.end(sequence.lora_name)
        self._kv.free(sequence, forget=forget)
        sequence.status = Status.FINISHED
        del self._live[sequence.request_id]
        if sequence.sent:
            self._unreported.append(sequence.request_id)


def _last(
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


def _samples(sequence: Sequence) -> bool:
    return sequence.num_computed + sequence.num_scheduled == len(sequence.token_ids)


def _introduce(sequence: Sequence) -> NewRequest:
    sequence.sent = True
    return NewRequest(
        sequence.request_id,
        sequence.prompt_token_ids,
        sequence.sampling,
        sequence.seed,
        sequence.eos_token_ids,
        sequence.lora_name,
        sequence.pooling,
    )


def _remove(ranked: list[Sequence], sequence: Sequence) -> None:
    del ranked[bisect_left(ranked, sequence.rank, key=_rank)]
