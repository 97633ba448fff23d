"""`Lanes`: the copies of a model (data parallelism), each with a scheduler and its plans in flight. One is the rule.

Copies keep step: in each step every copy launches a plan, then those whose pipeline is full, or that had nothing to
launch, collect their oldest one. Which copy a request goes to, and when a plan is collected, follows from the requests
alone, so every rank comes to the same decisions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Set
from collections.abc import Sequence as SequenceOf
from dataclasses import astuple

from bestiary.api.errors import EngineError, ModelFailed, RequestError
from bestiary.api.outputs import FinishReason

from .executor import Executor
from .kv_cache import KVCacheUsage
from .plan import StepPlan
from .scheduler import Scheduler, SchedulerStats
from .sequence import Sequence, SequenceUpdate


class PlanFailed(Exception):
    """The model raised; `__cause__` is what it raised. Nothing of `plan` was computed."""

    def __init__(self, plan: StepPlan) -> None:
        super().__init__(plan.step)
        self.plan = plan

    def told(self, model: str, after: str) -> ModelFailed:
        """The same for users: which requests were in the step; `after` says what can be done now."""
        plan, cause = self.plan, self.__cause__
        error = ModelFailed(
            f"{model} failed in step {plan.step}: {type(cause).__name__}: {cause}",
            field=model,
            details=[f"{item.request_id}: tokens {item.start} to {item.start + item.count - 1}" for item in plan.items],
            fix=f"look at the chained traceback (--debug on the command line); {after}",
        )
        error.request_ids = frozenset(item.request_id for item in plan.items)
        error.__cause__ = cause
        return error


class Lane:
    """One copy of the model. `ahead`: steps are planned before the tokens of those before them are known."""

    def __init__(self, copy: int, scheduler: Scheduler, ahead: bool = False) -> None:
        self.copy, self.scheduler, self.ahead = copy, scheduler, ahead
        self.flying: deque[tuple[StepPlan, float]] = deque()

    def launch(self, executor: Executor, only: Set[str] | None = None) -> bool:
        """Plan a step, of all requests or `only` of some, and begin it; False where there is nothing to begin."""
        return self._begin(executor, self.scheduler.schedule(only))

    def launch_ahead(self, executor: Executor) -> bool:
        """Begin the step after the one in flight; False where it is not known yet."""
        return self._begin(executor, self.scheduler.schedule_ahead())

    def _begin(self, executor: Executor, plan: StepPlan | None) -> bool:
        started = time.perf_counter()
        if plan is None:
            return False
        try:
            executor.launch(plan, self.copy)
        except BaseException as cause:
            self.scheduler.abandon(plan)
            if isinstance(cause, EngineError | KeyboardInterrupt):
                raise
            raise PlanFailed(plan) from cause
        self.flying.append((plan, started))
        return True

    def collect(self, executor: Executor) -> tuple[StepPlan, float, list[SequenceUpdate]]:
        """The oldest plan in flight, the seconds since it began, and what became of its requests."""
        plan, started = self.flying.popleft()
        try:
            result = executor.collect(plan, self.copy)
        except BaseException as cause:
            self._give_up(plan)
            if isinstance(cause, EngineError | KeyboardInterrupt):
                raise
            raise PlanFailed(plan) from cause
        return plan, time.perf_counter() - started, self.scheduler.update(plan, result)

    def _give_up(self, plan: StepPlan) -> None:
        """The oldest plan failed, and with it what was begun upon it."""
        while self.flying:
            self.scheduler.abandon(self.flying.pop()[0])
        self.scheduler.abandon(plan)


class Lanes:
    """All copies, as one queue of requests."""

    def __init__(self, schedulers: SequenceOf[Scheduler], ahead: bool = False) -> None:
        self.lanes = [Lane(copy, scheduler, ahead) for copy, scheduler in enumerate(schedulers)]

    def add(self, *sequences: Sequence) -> None:
        """Queue one request where the fewest are. Raises `RequestError` as `Scheduler.add` does."""
        for name in [sequence.request_id for sequence in sequences]:
            if any(lane.scheduler.is_live(name) for lane in self.lanes):
                raise RequestError("the request id is in use", code="DUPLICATE_REQUEST", field="request_id", value=name)
        min(self.lanes, key=lambda lane: lane.scheduler.num_live).scheduler.add(*sequences)

    def finish(self, request_id: str, reason: FinishReason, stop_reason: str | None = None) -> SequenceUpdate | None:
        """End a request, wherever it is; None where it is not live."""
        for lane in self.lanes:
            if lane.scheduler.is_live(request_id):
                return lane.scheduler.finish(request_id, reason, stop_reason)
        return None

    def fail(self, request_id: str, error: str) -> SequenceUpdate | None:
        """End one request with `error`; None where it is not live."""
        for lane in self.lanes:
            if lane.scheduler.is_live(request_id):
                return lane.scheduler.finish(request_id, "error", error=error)
        return None

    def fail_all(self, error: str) -> list[SequenceUpdate]:
        """End every request with `error`."""
        return [update for lane in self.lanes for update in lane.scheduler.fail_all(error)]

    def has_unfinished(self) -> bool:
        return any(lane.scheduler.has_unfinished() for lane in self.lanes)

    def step(
        self, executor: Executor, only: Set[str] | None = None
    ) -> Iterator[tuple[StepPlan, float, list[SequenceUpdate]]]:
        """One step of every copy, of all requests or `only` of some; yields what `Lane.collect` gives."""
        if len(self.lanes) == 1 and self.lanes[0].ahead:
            yield from self._step_ahead(self.lanes[0], executor, only)
            return
        launched = [lane.launch(executor, only) for lane in self.lanes]
        for lane, began in zip(self.lanes, launched, strict=True):
            if lane.flying and (lane.scheduler.is_full or not began):
                yield lane.collect(executor)

    def _step_ahead(
        self, lane: Lane, executor: Executor, only: Set[str] | None
    ) -> Iterator[tuple[StepPlan, float, list[SequenceUpdate]]]:
        """Collect the oldest step, the next one having been begun where it is known."""
        if only is not None:
            while lane.flying:
                yield lane.collect(executor)
        if not lane.flying:
            lane.launch(executor, only)
        if only is None:
            lane.launch_ahead(executor)
        yield lane.collect(executor)
        while lane.flying and not lane.scheduler.has_unfinished():
            yield lane.collect(executor)

    def stats(self) -> SchedulerStats:
        """Of all copies together."""
        found = [lane.scheduler.stats() for lane in self.lanes]
        caches = [astuple(each.kv_cache) for each in found]
        return SchedulerStats(
            sum(each.running for each in found),
            sum(each.waiting for each in found),
            sum(each.preemptions for each in found),
            KVCacheUsage(*map(sum, zip(*caches, strict=True))),
        )
