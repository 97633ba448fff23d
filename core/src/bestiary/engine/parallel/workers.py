"""`Workers`: the ranks that this process started, watched; and `LocalWorkers`, which it starts on its own machine.

If a worker ends, is frozen, or reports an error, all of them are killed at once: whoever waits for one in a collective
then gets an error instead of waiting. A local worker is a fresh interpreter at the other end of a socket pair, so
nobody else can speak to it; if this process ends, it reads the end of the socket and ends too.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bestiary.api.errors import EngineError

from .frames import Frames, send_frame
from .messages import Beat, Failed, Ready, Start, decode_from_worker, encode

BEAT_SECONDS = 1.0
FROZEN_SECONDS = 10.0
_READY_SECONDS = 600.0
_END_SECONDS = 5.0
_GRACE_SECONDS = 0.5
SYMPTOMS = ("RANK_DIED", "RANK_STALLED")
"""Codes of a rank that lost another: the cause lies there."""
_COMMAND = "from bestiary.engine.parallel.worker import main; main({descriptor})"


class Process(Protocol):
    """What is asked of a worker's process, in the form in which `subprocess.Popen` has it."""

    pid: int

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status once it has ended, None where that is not known. Raises `subprocess.TimeoutExpired`."""


@dataclass(slots=True)
class Worker:
    """One started rank: its process, and the stream of frames from it. machine: where that is not this one."""

    rank: int
    process: Process
    channel: socket.socket
    machine: str | None = None
    frames: Frames = field(default_factory=Frames)
    ready: bool = False
    ticks: int = 0
    waiting: bool = False
    symptom: EngineError | None = None
    heard: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        where = "" if self.machine is None else f" on {self.machine}"
        return f"rank {self.rank} (process {self.process.pid}{where})"


class Workers:
    """Attributes: failure: why the team is lost, once it is."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.failure: EngineError | None = None
        self._on_failure: Callable[[], None] = lambda: None
        self._closing = False
        self._changed = threading.Condition()
        self._workers = list(workers)
        self._watcher = threading.Thread(target=self._watch, name="bestiary-workers", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> dict[int, int]:
        """Rank → process id."""
        return {worker.rank: worker.process.pid for worker in self._workers}

    def on_failure(self, call: Callable[[], None]) -> None:
        """`call` once, when the team is lost, from the watching thread; or now, where it is lost already."""
        with self._changed:
            self._on_failure, lost = call, self.failure is not None
        if lost:
            call()

    def wait_ready(self) -> None:
        """Until every worker has built its part. Raises the error of one that could not."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.failure is not None or all(worker.ready for worker in self._workers), _READY_SECONDS
            )
        if self.failure is None and not done:
            late = [worker.rank for worker in self._workers if not worker.ready]
            self._fail(EngineError(f"ranks {late} did not start within {_READY_SECONDS:.0f} s", code="RANK_STALLED"))
        if self.failure is not None:
            raise self.failure

    def behind(self, ticks: int) -> str | None:
        """Who has not come as far as step `ticks`, or is busy there while others wait; in words."""
        late = [worker.rank for worker in self._workers if worker.ticks < ticks or not worker.waiting]
        return " and ".join(f"rank {rank}" for rank in late) or None

    def kill(self) -> None:
        """End them now."""
        with self._changed:
            self._closing = True
        for worker in self._workers:
            worker.process.kill()
        self._end()

    def close(self) -> None:
        """End them: in peace where they end by themselves in a few seconds, otherwise by force."""
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._closing = True
        for worker in self._workers:
            try:
                worker.process.wait(_END_SECONDS if self.failure is None else 0)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._watcher.join()
        for worker in self._workers:
            worker.channel.close()

    # --- the watching thread ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select(timeout=BEAT_SECONDS / 4):
                    if not self._read(key.data):
                        selector.unregister(key.data.channel)
                self._look_closer(time.monotonic())

    def _read(self, worker: Worker) -> bool:
        """Take what a worker said; False when it has gone."""
        try:
            data = worker.channel.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._gone(worker)
            return False
        worker.heard = time.monotonic()
        try:
            for frame in worker.frames.feed(data):
                self._take(worker, decode_from_worker(frame))
        except (EngineError, ValueError) as error:
            self._fail(EngineError(f"rank {worker.rank} spoke nonsense: {error}", code="BAD_MESSAGE"))
        return True

    def _take(self, worker: Worker, message: Ready | Beat | Failed) -> None:
        with self._changed:
            if isinstance(message, Ready):
                worker.ready = True
            elif isinstance(message, Beat):
                worker.ticks, worker.waiting = message.ticks, message.waiting
            self._changed.notify_all()
        if isinstance(message, Failed):
            error = message.error.raised_as(EngineError, f"rank {worker.rank}: ")
            if error.error_code in SYMPTOMS:
                worker.symptom, worker.heard = error, time.monotonic()
            else:
                self._fail(error)

    def _gone(self, worker: Worker) -> None:
        if self._closing or worker.symptom is not None:
            return
        try:
            code: int | None = worker.process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        error = EngineError(
            f"{worker.name} {_how_it_ended(code)}; all ranks were ended",
            code="RANK_DIED", field=f"rank {worker.rank}", value=code,
            fix="its last words, if any, stand above; without them, look for the kernel's out-of-memory killer",
        )  # fmt: skip
        self._fail(error)

    def _look_closer(self, now: float) -> None:
        """After processes that do not stir; and after those that lost another, which will be heard of in a moment."""
        for worker in self._workers:
            if self._closing or self.failure is not None:
                return
            if worker.symptom is not None and now - worker.heard > _GRACE_SECONDS:
                self._fail(worker.symptom)
            elif worker.symptom is None and now - worker.heard > FROZEN_SECONDS:
                self._fail(
                    EngineError(
                        f"{worker.name} has not stirred for {FROZEN_SECONDS:.0f} s; all ranks were ended",
                        code="RANK_STALLED",
                        field=f"rank {worker.rank}",
                    )
                )

    def _fail(self, error: EngineError) -> None:
        """Record the first cause, and kill them all."""
        with self._changed:
            first = self.failure is None and not self._closing
            if first:
                self.failure = error
            call = self._on_failure
            self._changed.notify_all()
        if first:
            for worker in self._workers:
                worker.process.kill()
            call()


class LocalWorkers(Workers):
    """Ranks of this machine, started here."""

    def __init__(self, starts: Sequence[tuple[int, Start]], threads: int) -> None:
        super().__init__([_start(rank, start, threads) for rank, start in starts])


def _start(rank: int, start: Start, threads: int) -> Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, *_flags(), "-c", _COMMAND.format(descriptor=theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
    send_frame(ours, encode(start))
    return Worker(rank, process, ours)


def _flags() -> list[str]:
    return ["-O"] * sys.flags.optimize + [f"-W{option}" for option in sys.warnoptions]


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "was lost"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
