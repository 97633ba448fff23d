"""`Team`: this rank's process groups, and what ranks tell each other beside tensors.

Three kinds of traffic. Model tensors go through the groups that layers see (`groups`). Before each step rank 0 tells
everybody what users asked for (`tell`, `hear`); between steps an engine may idle for days, so that wait has no limit.
After a step the rank that drew its tokens shows them to everybody (`exchange`), within `stall_timeout`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from bestiary.api.config import ParallelConfig
from bestiary.api.errors import BestiaryError, EngineError
from bestiary.nn.parallel.distributed import PEER_LOST, PEER_STALLED, Store, TorchGroup, dist

from .messages import Close, Drawn, Event, Tick, decode_drawn, decode_tick, decode_trouble, encode
from .places import connected_groups, groups_of
from .seat import Seat
from .workers import Workers

_INLINE = 4096
_FOREVER = 10 * 365 * 86400.0
_GRACE_SECONDS = 1.0


class Team:
    """One rank's end of it. Building a model needs only the numbers in `groups`; then `assemble` connects them.

    Attributes:
        ticks: steps begun so far. own: this rank's copy of the model (data parallelism).
        on_lost: called, from another thread, when a rank that this process started is lost.
    """

    def __init__(self, parallel: ParallelConfig, seat: Seat, device: str) -> None:
        self.parallel, self.seat, self.device = parallel, seat, device
        self.rank, self.own = parallel.rank, parallel.data_parallel_rank
        self.groups = groups_of(parallel, TorchGroup)
        self._world = [TorchGroup(self.rank, parallel.world_size_across_dp) for _ in range(2)]
        self._control, self._results = self._world
        self._store: Store | None = None
        self._events: list[Event] = []
        self.workers: Workers | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self.ticks = 0
        self._threads: int | None = None

    @property
    def leads(self) -> bool:
        """Whether users' requests come in here."""
        return self.rank == 0

    def take_threads(self, count: int) -> None:
        """Compute with `count` threads, this rank's share of the machine, until the team is left."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(count)

    def assemble(self, workers: Workers | None) -> None:
        """Meet the other ranks; `workers` are those that this process started."""
        self.workers = workers
        if workers is not None:
            workers.on_failure(self._lost)
            workers.wait_ready()
        with self.blaming_peers():
            self._store = store = self.seat.store(self.parallel.world_size_across_dp)
            for name, group, timeout, device in self._connections():
                group.connect(dist.PrefixStore(name, store), device=device, address=self.seat.address, timeout=timeout)
        self.smallest(0)  # all have met: the meeting point is needed no more

    def _connections(self) -> list[tuple[str, TorchGroup, float, str]]:
        """(a name that only the members share, group, timeout, device)."""
        patience = self.parallel.stall_timeout
        found: list[tuple[str, TorchGroup, float, str]] = [
            ("control", self._control, _FOREVER, "cpu"),
            ("results", self._results, patience, "cpu"),
        ]
        for name, group in connected_groups(self.parallel, self.groups):
            if isinstance(group, TorchGroup):
                found.append((name, group, patience, self.device))
        return found

    # --- before a step ----------------------------------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """Something that every rank must know before the next step."""
        self._events.append(event)

    def tell(self, *, step: bool = True) -> None:
        """Rank 0 begins a step, or, where no `step` follows, something that all do together between two."""
        events, self._events = tuple(self._events), []
        self.ticks += 1
        self._share(encode(Tick(events, step)), 0, self._control)

    def hear(self) -> Tick:
        """The others wait for it."""
        data = self._share(None, 0, self._control)
        self.ticks += 1
        return decode_tick(data)

    def first_trouble(self, trouble: BestiaryError | None) -> dict[str, Any] | None:
        """What went wrong on the first rank on which anything did (as `as_dict` says it): the same answer on all."""
        world = self.parallel.world_size_across_dp
        source = self.smallest(world if trouble is None else self.rank)
        if source == world:
            return None
        data = encode(trouble.as_dict()) if source == self.rank and trouble is not None else None
        return decode_trouble(self._share(data, source, self._control))

    def is_same(self, value: int) -> bool:
        """Whether all ranks have this value; the same answer on all."""
        return self.smallest(value) == -self.smallest(-value)

    # --- after a step -----------------------------------------------------------------------------------------------

    def exchange(self, copy: int, drawn: Drawn | None) -> Drawn:
        """What copy `copy` of the model drew: given by its sampler, received by everybody else."""
        source = self.parallel.sampler(copy)
        data = self._share(None if drawn is None else encode(drawn), source, self._results)
        return decode_drawn(data) if drawn is None else drawn

    def smallest(self, value: int) -> int:
        """The smallest of all ranks' values."""
        with self.blaming_peers():
            return self._control.smallest(value)

    def _share(self, data: bytes | None, source: int, group: TorchGroup) -> bytes:
        """Bytes from `source` to all: one broadcast where they are few, two where they are many."""
        first = torch.zeros(_INLINE, dtype=torch.uint8)
        if data is not None:
            first[:8] = torch.frombuffer(bytearray(len(data).to_bytes(8, "little")), dtype=torch.uint8)
            head = data[: _INLINE - 8]
            first[8 : 8 + len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        group.broadcast(first, source)
        size = int.from_bytes(first[:8].numpy().tobytes(), "little")
        found = first[8 : 8 + min(size, _INLINE - 8)].numpy().tobytes()
        if size > len(found):
            rest = torch.empty(size - len(found), dtype=torch.uint8)
            if data is not None:
                rest = torch.frombuffer(bytearray(data[len(found) :]), dtype=torch.uint8)
            group.broadcast(rest, source)
            found += rest.numpy().tobytes()
        return found

    # --- the end ------------------------------------------------------------------------------------------------------

    @contextmanager
    def blaming_peers(self) -> Iterator[None]:
        """Lost peers become an error that says which rank was lost, and why."""
        try:
            yield
        except EngineError as error:
            raise self.explained(error) from error

    def explained(self, cause: EngineError) -> EngineError:
        """`cause`; where that only says that a peer was lost, what this machine knows of it."""
        if cause.error_code not in (PEER_LOST, PEER_STALLED):
            return cause
        deadline = time.monotonic() + _GRACE_SECONDS
        while self.workers is not None and self.workers.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the watcher hears of a dead process a moment after torch does
        if self.workers is not None and self.workers.failure is not None:
            return self.workers.failure
        who = (self.workers and self.workers.behind(self.ticks)) or "another rank"
        if cause.error_code == PEER_STALLED:
            return EngineError(
                f"{who} did not answer within {self.parallel.stall_timeout:g} s, in step {self.ticks}",
                code="RANK_STALLED", field="stall_timeout", value=self.parallel.stall_timeout,
                fix="a longer stall_timeout (--stall-timeout SECONDS), if it was only slow",
            )  # fmt: skip
        return EngineError(
            f"{who} was lost, in step {self.ticks}: {cause.message[-160:]}", code="RANK_DIED",
            field=f"rank {self.rank}", fix="look at what the other machines say, and start again",
        )  # fmt: skip

    def abandon(self) -> None:
        """End it at once, by force: a rank was lost, or this one failed in the middle of a step."""
        self._store = None
        if self.workers is not None:
            self.workers.kill()
        self._leave()
        self._restore_threads()

    def close(self) -> None:
        """Leave in peace. Rank 0 says so first, where the others still listen. May be called twice."""
        if self.leads and self._store is not None and (self.workers is None or self.workers.failure is None):
            self.note(Close())
            with suppress(EngineError):  # nobody is left to hear it
                self.tell()
        if self.workers is not None:
            self.workers.close()
        self._leave()
        self._store = None
        self._restore_threads()

    def _restore_threads(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None

    def _lost(self) -> None:
        self._leave()
        self.on_lost()

    def _leave(self) -> None:
        for group in (*self._world, self.groups.tensor, self.groups.pipeline):
            if isinstance(group, TorchGroup):
                group.close()
