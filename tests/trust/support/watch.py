"""`Watch`: a server that is asked very much, and what it must not have grown by afterwards."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from . import census
from .kept import Kept
from .memory import Samples, holdings
from .server import Server

MOST_SLOPE = 0.1
"""KiB a request."""
MOST_GROWTH = 16 << 20
"""Bytes of one process, whatever was asked."""
MANY, GRAIN = 10_000, 8 << 20
"""With fewer requests a slope may be one step of an allocator, or a heap that is not yet as divided as it will be: then
`GRAIN` bytes are allowed in all, and it is the census that tells of a leak."""
MOST_OBJECTS, FEW_OBJECTS, SOME_OBJECTS = 0.001, 0.02, 20
"""Of each type there may be more than at first by the first share of their number, the second of the number of
requests, or the third: so a leak shows that each of fifty requests has a part in."""
OF_TIMERS = {"asyncio.events.TimerHandle": 250, "_contextvars.Context": 250, "builtins.tuple": 250}
"""Of these it may be more: an event loop keeps timers that were cancelled until they are a hundred, and half of all."""
CLIENTS = 16
_SAMPLES = 40
_BASELINE_SECONDS = 60.0
_POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's pool, each started when all of those before it are busy for the first time."""

Asking = Callable[[Kept, int], Awaitable[None]]
"""Asks the server the request of a number over a connection."""


def warm_up(requests: int) -> int:
    """How many come before those: until everything was used once, and a heap is as divided as it will be."""
    return max(120, requests // 4)


class Watch:
    """Args: server: ready, and its processes can be asked for a census in `folder`."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self._folder = server, folder

    async def run(self, asking: Asking, requests: int, warm: int = 0) -> tuple[dict[str, Any], list[str]]:
        """Ask so often, after a warm-up of at least `warm`; returns figures, and what has grown."""
        warm = max(warm, warm_up(requests))
        await self._ask(asking, 0, warm)
        await self.server.until_quiet()
        self._census()  # the first makes objects of its own
        pid, before = self.server.process.pid, self._census()
        samples = Samples(pid)
        samples.take(0)
        step = max(1, requests // _SAMPLES)
        for start in range(0, requests, step):
            stop = min(start + step, requests)
            await self._ask(asking, warm + start, warm + stop)
            samples.take(stop)
        await self.server.until_quiet()
        complaints = await self._until_baseline(samples)
        grown, asked = self._grown(before, requests), warm + requests
        if grown:  # by requests, or by something that was done for the first time?
            before = self._census()
            await self._ask(asking, asked, asked + requests)
            await self.server.until_quiet()
            complaints += await self._until_baseline(samples)
            grown, asked = self._grown(before, requests), asked + requests
        return {"warm_up": warm, "asked": asked, **_figures(samples)}, complaints + grown + _memory(samples, requests)

    async def _ask(self, asking: Asking, start: int, stop: int) -> None:
        numbers = iter(range(start, stop))

        async def client() -> None:
            connection = Kept(self.server.port)
            for number in numbers:
                await asking(connection, number)
            connection.leave()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    def _census(self) -> dict[str, Counter[str]]:
        pids = {"server": self.server.process.pid, "engine": self.server.engine_pid}
        return {role: census.take(self._folder, pid) for role, pid in pids.items() if pid is not None}

    def _grown(self, before: dict[str, Counter[str]], requests: int) -> list[str]:
        """Types of which there are more than when it was new."""
        found = []
        for role, now in self._census().items():
            for kind, count in now.items():
                few = OF_TIMERS.get(kind, SOME_OBJECTS)
                allowed = max(MOST_OBJECTS * before[role][kind], FEW_OBJECTS * requests, few)
                if count - before[role][kind] > allowed or (kind == "tasks" and count > before[role][kind]):
                    found.append(f"{role}: {count - before[role][kind]} more of {kind}, of {count}")
        return found

    async def _until_baseline(self, samples: Samples) -> list[str]:
        """Wait until descriptors, threads and processes are as they were; what is not."""
        first, wrong = samples.held[0], ["not looked"]
        try:
            async with asyncio.timeout(_BASELINE_SECONDS):
                while wrong:
                    now = holdings(samples.pid)
                    wrong = [f"{role} is new" for role in now.keys() - first.keys()]
                    wrong += [f"{role} is gone" for role in first.keys() - now.keys()]
                    for role in first.keys() & now.keys():
                        few = first[role].threads + _POOL
                        if now[role].descriptors > first[role].descriptors or now[role].threads > few:
                            wrong.append(f"{role}: {now[role]}, at first {first[role]}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return wrong
        return []


def _figures(samples: Samples) -> dict[str, Any]:
    slopes = {f"{role}_kib_per_request": round(each, 4) for role, each in samples.slopes().items()}
    growth = {f"{role}_grown_mib": round(each / 2**20, 2) for role, each in samples.growth().items()}
    return slopes | growth


def _memory(samples: Samples, requests: int) -> list[str]:
    allowed = MOST_SLOPE if requests >= MANY else GRAIN / 1024 / requests
    steep = [f"{role}: {each:.2f} KiB a request" for role, each in samples.slopes().items() if each > allowed]
    much = [f"{role} grew by {each} bytes" for role, each in samples.growth().items() if each > MOST_GROWTH]
    return steep + much
