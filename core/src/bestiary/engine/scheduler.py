"""`Scheduler`: which tokens of which requests the next step computes, and what became of them. No torch, no clock.

A step is `schedule` (by the rules of `choosing.py`), execution, `update` (by those of `recording.py`); between the two
a request may be aborted, and its result is then ignored. The requests themselves are in its `Roster`.

* **Flight.** Up to `depth` plans are in flight, as many as a pipeline has stages, with different requests in each;
  their results come back in order. Each takes its share of the requests, so that no stage idles. What is in flight is
  neither planned again nor preempted.
* **Ahead.** Where `schedule_ahead` is asked, a second plan is made upon the one in flight before that has told its
  tokens (`ahead.py`); the same rules come to the same answers, for it is only made where they leave no choice.

All of it is a function of the calls made: the same calls give the same plans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import NamedTuple

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.outputs import FinishReason

from .adapters import Adapters, SlotTable
from .admission import Limits
from .ahead import continued
from .choosing import StepChoice
from .kv_cache import KVCacheManager, KVCacheUsage
from .plan import NewRequest, ScheduledItem, StepPlan, StepResult
from .recording import last_update, record
from .roster import Roster
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
    """A plan that was given out, and its sequences with their items, in order."""

    plan: StepPlan
    parts: list[tuple[Sequence, ScheduledItem]]

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for sequence, _ in self.parts]


class Scheduler:
    """Owns every live `Sequence` and their blocks, through its `roster`, and the plans in flight."""

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
        shared: bool = False,
    ) -> None:
        """`prompt_salt` is asked, for each length of a prompt, among which others its cached blocks may be shared.
        Without `adapters`, requests may name any, and none has to be in a slot. `num_state_rows`: of models with
        states, at least two for each of `max_num_seqs`; None for others. `shared`: several ranks plan the same, and one
        of them follows forms."""
        self._depth, self._shared = depth, shared
        self._config = scheduler_config
        self._prompt_salt = prompt_salt
        adapters = adapters or Adapters()
        kv = KVCacheManager(
            num_blocks, cache_config.block_size, prefix_caching=cache_config.enable_prefix_caching,
            states=None if num_state_rows is None else StateRows(num_state_rows),
        )  # fmt: skip
        slots = SlotTable(None if adapters.config is None else adapters.config.max_loras)
        self.roster = Roster(kv, slots, adapters)
        self.limits = Limits(
            max_model_len=max_model_len,
            cache_tokens=num_blocks * cache_config.block_size,
            max_prompt=None if scheduler_config.enable_chunked_prefill else scheduler_config.max_num_batched_tokens,
        )
        self._steps = 0
        self._lacking: tuple[Sequence | None, int] = (None, 0)  # who found too few blocks free, and how many
        self._flights: deque[_Flight] = deque()  # oldest first

    # --- requests -------------------------------------------------------------------------------------------------

    def add(self, *sequences: Sequence) -> None:
        """Queue one request, or several (the children of one with ``n`` > 1), all or none.

        Raises:
            RequestError: it can never run (`admission.py`), its id is in use, or the queue is full.
        """
        room = self._config.max_queue
        if room is not None and len(self.roster.waiting) + len(sequences) > room:
            raise RequestError("too many requests are waiting", code="QUEUE_FULL", field="max_queue", limit=room)
        limits = [self.limits.check(sequence) for sequence in sequences]
        ids: set[str] = set()
        for name in [sequence.request_id for sequence in sequences]:
            if name in self.roster.live or name in ids:
                raise RequestError("the request id is in use", code="DUPLICATE_REQUEST", field="request_id", value=name)
            ids.add(name)
        for sequence, limit in zip(sequences, limits, strict=True):
            sequence.max_total = limit
            sequence.prompt_salt = self._prompt_salt(sequence.num_prompt) if self._prompt_salt else None
            self.roster.add(sequence)

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
        sequence = self.roster.live.get(request_id)
        if sequence is None:
            return None
        self.roster.end(sequence)
        return last_update(sequence, finish_reason, stop_reason, error)

    def fail_all(self, error: str) -> list[SequenceUpdate]:
        """End every request with `error`."""
        return [update for name in list(self.roster.live) if (update := self.finish(name, "error", error=error))]

    def has_unfinished(self) -> bool:
        return bool(self.roster.live)

    def is_live(self, request_id: str) -> bool:
        return request_id in self.roster.live

    @property
    def num_live(self) -> int:
        return len(self.roster.live)

    def slot_of(self, lora_id: str) -> int | None:
        """The slot that an adapter is in."""
        return self.roster.slots.slot_of(lora_id)

    def forget_adapter(self, lora_id: str) -> None:
        """An adapter that no request wants was removed."""
        self.roster.slots.forget(lora_id)

    def has_unreported(self) -> bool:
        """Whether the executor still holds ended requests; the next plan names them, even one without items."""
        return self.roster.has_unreported

    def stats(self) -> SchedulerStats:
        roster = self.roster
        return SchedulerStats(len(roster.running), len(roster.waiting), roster.preemptions, roster.kv.usage())

    def clear_prefix_cache(self) -> None:
        """Forget all cached content; what runs goes on."""
        self.roster.kv.clear_prefix_cache()

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
        left_out = frozenset() if only is None else self.roster.live.keys() - only
        choice = StepChoice(self.roster, self._config, self._share(), left_out)
        scheduled = choice.make()
        self._lacking = choice.lacking, self.roster.kv.pool.num_free
        if self._flights and not scheduled:
            return None
        items = tuple(
            [ScheduledItem(s.request_id, s.num_computed, s.num_scheduled, s.block_ids, _samples(s)) for s in scheduled]
        )
        if self.roster.kv.states is not None:
            items = tuple(map(self._with_rows, items, scheduled))
        new = tuple([_introduce(sequence) for sequence in scheduled if not sequence.sent])
        return self._give_out(list(zip(scheduled, items, strict=True)), new)

    def schedule_ahead(self) -> StepPlan | None:
        """The step after the only one in flight, whose tokens are not known yet; None where that is not known either.

        It must come back as the other does, after it.
        """
        if len(self._flights) != 1 or self._depth > 1:
            return None
        flight = self._flights[0]
        running, waiting = self.roster.running, self.roster.waiting
        room = len(running) < self._config.max_num_seqs
        others = any(not each.num_scheduled for each in running)
        urgent = waiting and running and waiting[0].priority < running[-1].priority
        if others or urgent or (room and waiting and not self._lacks_blocks(waiting[0])):
            return None
        found = continued(flight.parts, self.roster.kv, forms=not self._shared)
        return None if found is None else self._give_out(found, ())

    def _lacks_blocks(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence was found to lack blocks, and there are no more than there were then."""
        lacking, free = self._lacking
        return sequence is lacking and self.roster.kv.pool.num_free <= free

    def _give_out(self, parts: list[tuple[Sequence, ScheduledItem]], new: tuple[NewRequest, ...]) -> StepPlan:
        finished = self.roster.take_unreported()
        items = tuple([item for _, item in parts])
        plan = StepPlan(self._steps, items, new, finished, self.roster.slots.take_loads())
        self._flights.append(_Flight(plan, parts))
        self._steps += 1
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Record what `plan`, the oldest in flight, computed and drew; returns every token and end, in batch order."""
        if not self._flights or plan is not self._flights[0].plan or result.step != plan.step:
            raise EngineError(f"plan {plan.step} and result {result.step} are not the step in flight")
        updates = record(self.roster, self._flights.popleft().sequences, result)
        if self._flights:
            self._take_up(self._flights[0])
        return updates

    def _take_up(self, flight: _Flight) -> None:
        """The requests of a plan that was made ahead are in flight with it alone now. One whose token did not come
        has no part in it."""
        for part in tuple(flight.parts):
            sequence, item = part
            if sequence.status is not Status.RUNNING:
                continue
            if sequence.num_computed == item.start:
                sequence.num_scheduled = item[2]
                continue
            flight.parts.remove(part)
            if self.roster.kv.states is not None:
                self.roster.kv.states.drop_ahead(sequence)

    def abandon(self, plan: StepPlan) -> None:
        """`plan`, the newest, failed as a whole: nothing of it was computed, and the next will say all of it again.

        The executor may or may not have read it, so it is told to forget what was new before it hears of it again.
        """
        if not self._flights or plan is not self._flights[-1].plan:
            raise EngineError(f"plan {plan.step} is not the step in flight")
        new = [request.request_id for request in plan.new]
        abandoned = self._flights.pop().sequences
        flying = {sequence for flight in self._flights for sequence in flight.sequences}
        for sequence in abandoned:
            sequence.sent = sequence.sent and sequence.request_id not in new
            if self.roster.kv.states is not None:
                self.roster.kv.states.drop_ahead(sequence)
            if sequence not in flying:
                sequence.num_scheduled = 0
        self.roster.report_again([*plan.finished, *new])
        self.roster.slots.give_back(plan.lora_loads)

    def _with_rows(self, item: ScheduledItem, sequence: Sequence) -> ScheduledItem:
        """The item of a model with states."""
        if self.roster.kv.states is None:
            return item
        read, write = self.roster.kv.states.schedule(sequence)
        return item._replace(state_read=read, state_write=write)

    def _share(self) -> int:
        """The most sequences of one plan: what leaves as many for each of the others in flight."""
        return -(-min(len(self.roster.live), self._config.max_num_seqs) // self._depth)


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
