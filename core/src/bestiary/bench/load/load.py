"""The run: requests start when they are due, their samples are collected, and somebody may watch."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from bestiary.serve.cli.chat.server import Server

from .arrivals import Arrivals, Closed
from .exchange import BadResponse, Pool
from .sample import Sample
from .work import Work

_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Run:
    """Attributes:
    samples: of all requests that were started, in the order of their start.
    running, most_running: requests under way now, and at most. cpu: seconds this process computed.
    """

    samples: list[Sample] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cpu: float = 0.0


class Load:
    """Sends `work` to `server`; a context manager, which closes the connections. Times are seconds since the beginning.

    Args:
        timeout: seconds after which a request counts as failed.
    """

    def __init__(
        self, server: Server, work: Work, *, timeout: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        secure = server.url.scheme == "https"
        self._server, self._work, self._timeout = server, work, timeout
        self._zero = clock()
        self._clock = clock
        context = ssl.create_default_context() if secure else None
        port = server.url.port or (443 if secure else 80)
        self._pool = Pool(str(server.url.hostname), port, context, self.now)

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._pool.close()
        await asyncio.sleep(0)  # connections are closed in the loop's next turn

    def now(self) -> float:
        return self._clock() - self._zero

    async def warm_up(self, count: int) -> list[Sample]:
        """Requests that nobody measures: they are others than those of `run`."""
        return [await self._ask(Run(), self._work.requests + number, self.now()) for number in range(count)]

    async def run(self, arrivals: Arrivals, watch: Callable[[Run], None] | None = None) -> Run:
        """All requests of the work; `watch` is called twice a second with what is known so far."""
        found, cpu = Run(), time.process_time()
        self._zero = self._clock()
        watcher = None if watch is None else asyncio.create_task(_watched(found, watch))
        try:
            if isinstance(arrivals, Closed):
                numbers = iter(range(self._work.requests))
                await asyncio.gather(*(self._worker(found, numbers) for _ in range(arrivals.concurrency)))
            else:
                await self._send_all(found, arrivals.times(self._work.requests))
        finally:
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
        found.cpu = time.process_time() - cpu
        return found

    async def _worker(self, found: Run, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._ask(found, number, self.now())

    async def _send_all(self, found: Run, times: list[float]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, due in enumerate(times):
                await asyncio.sleep(max(0.0, due - self.now()))
                tasks.create_task(self._ask(found, number, due))

    async def _ask(self, found: Run, number: int, due: float) -> Sample:
        sample = Sample(due)
        found.samples.append(sample)
        request = self._work.request(self._server, number)
        found.running += 1
        found.most_running = max(found.most_running, found.running)
        sample.sent = self.now()
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._pool.exchange(request, sample.take)
            sample.close(connection.status, connection.body, self.now())
        except TimeoutError:
            sample.error = "timeout"
        except (OSError, BadResponse) as error:
            sample.error = type(error).__name__
        finally:
            sample.end = sample.end or self.now()
            found.running -= 1
        return sample


async def _watched(found: Run, watch: Callable[[Run], None]) -> None:
    while True:
        watch(found)
        await asyncio.sleep(_LOOK_SECONDS)
