"""`LoopWatch`: says so when an event loop does not turn, and where it hangs. A blocked loop answers nobody."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from types import TracebackType

from bestiary.engine.notices import notice

BLOCKED_SECONDS = 1.0


class LoopWatch:
    """While it lasts, a thread of its own asks the running loop for a sign of life, several times a second.

    Attributes:
        blocked: how often the loop has been found to hang. longest: for how many seconds at most.
    """

    def __init__(self, limit: float = BLOCKED_SECONDS) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bestiary-loop-watch", daemon=True)
        self.blocked, self.longest = 0, 0.0

    def __enter__(self) -> LoopWatch:
        self._turn()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        if not self._end.is_set():
            self._loop.call_later(self._limit / 4, self._turn)

    def _watch(self) -> None:
        told = 0.0  # the turn after which the loop was last said to hang
        while not self._end.wait(self._limit / 4):
            still = time.monotonic() - self._turned
            if still < self._limit:
                continue
            self.longest = max(self.longest, still)
            if told != self._turned:
                told = self._turned
                self.blocked += 1
                self._tell(still)

    def _tell(self, still: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = "" if frame is None else "".join(traceback.format_stack(frame, limit=12))
        notice(f"the server's event loop has been blocked for {still:.1f} s, in\n{stack.rstrip()}")
