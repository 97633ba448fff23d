"""Decode steps that run again without Python: recorded when a number of rows first comes, or all at the start, and
replayed from then on.

A step in which every sequence has one token depends on the host's numbers in its shape alone. Its input lies in buffers
that stay where they are; so do weights and caches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from bestiary.api.errors import EngineError
from bestiary.nn.attention.backend import AttentionBackend
from bestiary.nn.graphs import NotRecordable, Results, StepRecorder, Together
from bestiary.nn.ops.registry import Target

from .batch import ForwardBatch
from .decode_input import DecodeInput, FixedMetadata
from .notices import notice
from .plan import StepPlan
from .request_state import RequestState

_MOST = 128
"""Recorded steps that are kept; the one that was used longest ago goes."""

Compute = Callable[[ForwardBatch], Results]
Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


def choose_recorder(
    offered: Mapping[str, type[StepRecorder]], target: Target, backends: Iterable[AttentionBackend | None]
) -> tuple[type[StepRecorder] | None, str]:
    """The first recorder that runs on `target`, given what a model's attention layers run on; or why there is none."""
    if not offered:
        return None, "no package in use offers a recorder"
    reasons = {name: kind.why_not(target) for name, kind in offered.items()}
    able = [offered[name] for name, reason in reasons.items() if reason is None]
    if not able:
        return None, "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    unfit = {getattr(each, "name", "none") for each in backends if not getattr(each, "recordable", False)}
    if unfit:
        return None, f"attention by {', '.join(sorted(unfit))} looks at the host's numbers"
    return able[0], ""


class StepGraphs:
    """Recorded steps by their number of rows, and whether one of these may have an adapter.

    Args:
        agreed: where ranks divide the model: given whether this rank has recorded a step, whether all have. Ranks see
            the same steps in the same order, and so record them in the same order.
    """

    def __init__(
        self, recorder: StepRecorder, input: DecodeInput, agreed: Callable[[bool], bool] | None = None
    ) -> None:
        self.recorder = recorder
        self.agreed = agreed
        self.input = input
        self.steps: OrderedDict[tuple[int, bool], Callable[[], Results]] = OrderedDict()
        self.refused: set[bool] = set()

    def take(
        self, plan: StepPlan, states: Mapping[str, RequestState], lora_slots: Mapping[str, int]
    ) -> ForwardBatch | None:
        """A plan's step, its input where recorded ones read it; None where it is none of those."""
        if {False, True} <= self.refused:
            return None
        batch = self.input.take(plan, states, lora_slots)
        return None if batch is None or (batch.lora is not None) in self.refused else batch

    @staticmethod
    def took(batch: ForwardBatch) -> bool:
        """Whether a step is one that `take` gave."""
        return isinstance(batch.attention, FixedMetadata)

    def run(self, batch: ForwardBatch, compute: Compute, otherwise: Callable[[], ForwardBatch]) -> Results:
        """What ``compute(batch)`` makes of a step that `take` gave, by itself or as it was recorded; good until the
        next step. ``otherwise()`` is the same step for models that cannot be recorded. Each run of a step that is
        being recorded has geometry of its own, so that what layers derive from it is part of the recorded run."""
        results = self.repeated(batch, compute)
        return compute(otherwise()) if results is None else self._asked(batch, results)

    def repeated(self, batch: ForwardBatch, compute: Compute) -> Results | None:
        """The same, for all rows of the recorded step; None where it cannot be recorded."""
        key = len(batch.input_ids), batch.lora is not None
        step = self.steps.get(key)
        if step is None:
            return self._record(key, compute)
        self.steps.move_to_end(key)
        return step()

    def record_all(self, compute: Compute, progress: Progress | None = None) -> int:
        """Record a step without adapters of every size that steps are padded to; how many there are. The largest comes
        first, so that the others find room in the memory that it leaves to them. Every row is nobody's."""
        sizes = sorted({self.input.padded(rows) for rows in range(1, self.input.rows + 1)}, reverse=True)[:_MOST]
        for done, size in enumerate(sizes):
            self.input.nobodys(size)
            if self._record((size, False), compute) is None:
                return done
            if progress is not None:
                progress(done + 1, len(sizes))
        return len(sizes)

    def _record(self, key: tuple[int, bool], compute: Compute) -> Results | None:
        """Run and keep a step whose numbers lie in the buffers; None, said once, where it cannot be recorded."""
        try:
            results, self.steps[key] = self._recorded(lambda: compute(self.input.fixed(*key)))
        except NotRecordable as reason:
            which = "with adapters " if key[1] else ""
            notice(f"decode steps {which}of this model cannot be recorded, and run op by op: {reason.message}")
            self.refused.add(key[1])
            return None
        if len(self.steps) > _MOST:
            self.steps.popitem(last=False)
        return results

    def _recorded(self, step: Callable[[], Results]) -> tuple[Results, Callable[[], Results]]:
        if self.agreed is None:
            return self.recorder.record(step)
        if not isinstance(self.recorder, Together):
            raise EngineError(f"recorder {self.recorder.name} records what one process does, and ranks share this step")
        return self.recorder.record_together(step, self.agreed)

    @staticmethod
    def _asked(batch: ForwardBatch, results: Results) -> Results:
        """The results of rows that somebody asked for."""
        count = len(batch.sampled)
        return results if count == len(batch.input_ids) else tuple(each[:count] for each in results)

    def recorded(self, rows: int) -> Callable[[], Results] | None:
        """The recorded step of so many rows without adapters, if there is one; running it repeats the last one."""
        return self.steps.get((rows, False))

    def forget(self) -> None:
        """Let go of all of them, before what they use goes: a connection to other ranks, for example."""
        self.steps.clear()

    def forget_adapted(self) -> None:
        """Record steps with adapters again: what their slots hold has changed."""
        for key in [key for key in self.steps if key[1]]:
            del self.steps[key]
