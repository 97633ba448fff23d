"""`Supervisor`: one engine process after another.

States, and what leads from one to the next:

    starting ── loaded ──▶ ready ◀── a step ends ── stalled        nothing moved for `unready_after` seconds
       │                     │                         │
       └──────── the process is gone, or was ended after `stall_timeout` seconds without a step
                             │
             restarting ──▶ starting, or ──▶ failed                  more than `MOST_RESTARTS` in `WINDOW_SECONDS`, a
                                                                    bad model or plugin, or restart="never"

`closed` comes from everywhere, and nothing comes after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from bestiary.api.errors import EngineError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.notices import notice

from .handle import EngineProcess, Spawned
from .messages import Beat, FromEngine, Loaded, ModelInfo, Phase, Stepped, ToEngine

State = Literal["starting", "ready", "stalled", "restarting", "failed", "closed"]
Restart = Literal["on-failure", "never"]

MOST_RESTARTS = 3
WINDOW_SECONDS = 300.0
_LOOK_SECONDS = 0.25


class Supervisor:
    """Owned by an event loop.

    Attributes:
        state, error: see the module. info: what the process said of the model, once it has loaded it.
        restarts: so far. phases: what the last start spent its time on, in seconds.

    Args:
        unready_after: seconds without a sign of life, or in one step, after which the engine counts as stalled.
        on_message: is given every message. on_lost: is told why the process is gone, before another is started.
        on_change: is told of every change of state.
    """

    def __init__(
        self,
        args: EngineArgs,
        eos_token_ids: frozenset[int],
        *,
        restart: Restart = "on-failure",
        unready_after: float = 30.0,
        on_message: Callable[[FromEngine], None],
        on_lost: Callable[[EngineError], None],
        on_change: Callable[[State], None] = lambda state: None,
    ) -> None:
        self._args, self._eos = args, eos_token_ids
        self._restart, self._unready_after = restart, unready_after
        self._on_message, self._on_lost, self._on_change = on_message, on_lost, on_change
        self._process: EngineProcess | None = None
        self._ended: set[EngineProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = time.monotonic()
        self._moves = 0
        self._deaths: deque[float] = deque()
        self.state: State = "starting"
        self.error: EngineError | None = None
        self.info: ModelInfo | None = None
        self.restarts = 0
        self._has_run = False
        self.phases: dict[str, float] = {}

    async def start(self, spawned: Spawned | None = None) -> None:
        """Start the first process, or take one that was `spawned` before, and watch. Returns at once; `state` and
        `on_change` tell what became of it."""
        await self._launch(spawned=spawned)
        self._keep(self._watch())

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def send(self, message: ToEngine) -> None:
        """To the process that runs; raises `EngineError` where none is ready to take it."""
        if self._process is None or self.info is None or self.state not in ("ready", "stalled"):
            raise EngineError(f"the engine is {self.state}", code="ENGINE_NOT_READY")
        self._process.send(message)

    async def close(self) -> None:
        """End the process; returns when it is gone."""
        self._change("closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None:
            self._ended.add(self._process)
        for process in self._ended:
            await process.close()

    # --- one process ------------------------------------------------------------------------------------------------

    async def _launch(self, pause: float = 0.0, spawned: Spawned | None = None) -> None:
        """Start a process, when the last has gone and its memory with it; and in `pause` seconds, for what killed two
        in a row may need a moment to pass."""
        for gone in tuple(self._ended):
            await gone.close()
            self._ended.discard(gone)
        await asyncio.sleep(pause)
        started = time.perf_counter()
        self.info, self.phases = None, {}
        self._moves, self._moved = 0, time.monotonic()
        self._process = process = EngineProcess(self._take, self._lost)
        self._change("starting")
        try:
            await process.start(self._args, self._eos, spawned)
        except OSError as cause:
            process.lost(EngineError(f"no engine process can be started: {cause}", code="ENGINE_DEAD"))
        self.phases["start the process"] = time.perf_counter() - started

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Phase):
            self.phases[message.name] = message.seconds
        elif isinstance(message, Loaded):
            self.info, self._has_run = message.info, True
            self._moved = time.monotonic()
            self._change("ready")
        elif isinstance(message, Beat):
            self._beat(message)
        elif isinstance(message, Stepped):
            self._has_moved()
        self._on_message(message)

    def _beat(self, message: Beat) -> None:
        if message.moves != self._moves or not message.busy:
            self._has_moved()
        self._moves = message.moves

    def _has_moved(self) -> None:
        self._moved = time.monotonic()
        if self.state == "stalled":
            notice("the engine moves again")
            self._change("ready")

    def _lost(self, error: EngineError) -> None:
        if self._process is not None:
            self._ended.add(self._process)
        self._process = None
        if self.state == "closed":
            return
        self._deaths.append(time.monotonic())
        while self._deaths and self._deaths[0] < time.monotonic() - WINDOW_SECONDS:
            self._deaths.popleft()
        self.error = error
        again = self._restart == "on-failure" and len(self._deaths) <= MOST_RESTARTS and not self._is_lasting(error)
        self.info = None
        self._change("restarting" if again else "failed")
        self._on_lost(error)
        if again:
            self.restarts += 1
            notice(f"{error.error_code}: {error.message}; restart {len(self._deaths)} of {MOST_RESTARTS}")
            self._keep(self._launch(pause=len(self._deaths) - 1.0))

    def _is_lasting(self, error: EngineError) -> bool:
        """Whether another process would fail in the same way: no process got as far as loading the model, this one
        could say why it did not, or the model failed at whatever it was asked."""
        loaded = self._has_run if error.error_code == "ENGINE_DEAD" else self.info is not None
        return not loaded or error.error_code == "MODEL_FAILED"

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            still = time.monotonic() - self._moved
            if self._process is None or self.state not in ("ready", "stalled"):
                continue
            if still > self._args.stall_timeout:
                self._end_stalled(self._process, still)
            elif still > self._unready_after and self.state == "ready":
                notice(f"the engine has not moved for {still:.0f} s")
                self._change("stalled")

    def _end_stalled(self, process: EngineProcess, still: float) -> None:
        model = "the model" if self.info is None else f"{self.info.architecture} ({self.info.distribution})"
        error = EngineError(
            f"{model} did not finish a step in {still:.0f} s, and its process was ended", code="ENGINE_STALLED",
            field="stall_timeout", limit=f"{self._args.stall_timeout:g} s",
            fix="a larger --stall-timeout, or smaller steps: --max-num-batched-tokens",
        )  # fmt: skip
        process.kill()
        process.lost(error)

    def _change(self, state: State) -> None:
        if self.state not in (state, "closed"):
            self.state = state
            self._on_change(state)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
