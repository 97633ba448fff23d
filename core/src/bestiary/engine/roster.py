"""`Roster`: every request that has not ended, who of them runs and who waits, and what those that run hold. No torch.

All changes of a sequence's `Status` are made here, so that what a request holds (blocks, rows of states, its adapter's
slot) is given and taken back with its place.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from .adapters import Adapters, SlotTable
from .kv_cache import KVCacheManager
from .sequence import Sequence, Status


def by_rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Roster:
    """Owned by the scheduler; the only writer of its lists and of sequences' `status`, `rank` and `preemptions`.

    Attributes:
        kv, slots: of this copy of the model. adapters: those that all copies know.
        live: by id. waiting, running: by rank.
        preemptions: so far.
    """

    def __init__(self, kv: KVCacheManager, slots: SlotTable, adapters: Adapters) -> None:
        self.kv = kv
        self.slots = slots
        self.adapters = adapters
        self.live: dict[str, Sequence] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._arrivals = 0
        self._unreported: list[str] = []  # ended, and the executor does not know

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence, behind all of its priority."""
        self.adapters.begin(sequence.lora_name)
        sequence.rank = (sequence.priority, self._arrivals)
        self._arrivals += 1
        self.live[sequence.request_id] = sequence
        self._wait(sequence)

    def run(self, sequence: Sequence) -> None:
        """Let a waiting sequence, which has its blocks and whose adapter has a place, run."""
        _remove(self.waiting, sequence)
        self.slots.hold(sequence.lora_name)
        insort(self.running, sequence, key=by_rank)
        sequence.status = Status.RUNNING

    def preempt(self, sequence: Sequence) -> None:
        """Let a running sequence wait; it keeps its tokens alone."""
        _remove(self.running, sequence)
        self.slots.release(sequence.lora_name)
        self.kv.free(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        self._wait(sequence)

    def end(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Forget a live sequence; `forget` is for what it computed, as in `KVCacheManager.free`."""
        running = sequence.status is Status.RUNNING
        _remove(self.running if running else self.waiting, sequence)
        if running:
            self.slots.release(sequence.lora_name)
        self.adapters.end(sequence.lora_name)
        self.kv.free(sequence, forget=forget)
        sequence.status = Status.FINISHED
        del self.live[sequence.request_id]
        if sequence.sent:
            self._unreported.append(sequence.request_id)

    @property
    def has_unreported(self) -> bool:
        """Whether requests have ended of which the executor was told to begin them, and not that they ended."""
        return bool(self._unreported)

    def take_unreported(self) -> tuple[str, ...]:
        """Those requests, which the executor is told of now."""
        if not self._unreported:
            return ()
        taken = tuple(self._unreported)
        self._unreported.clear()
        return taken

    def report_again(self, request_ids: Iterable[str]) -> None:
        """The executor may not have heard of these; it is told to forget them with the next plan."""
        self._unreported += request_ids

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=by_rank)


def _remove(ranked: list[Sequence], sequence: Sequence) -> None:
    del ranked[bisect_left(ranked, sequence.rank, key=by_rank)]
