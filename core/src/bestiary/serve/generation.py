"""One accepted request as whoever waits for it sees it: `Generation` for a text, `PoolingGeneration` for a vector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from bestiary.api.errors import EngineError
from bestiary.api.outputs import PoolingRequestOutput, RequestOutput

Output = TypeVar("Output", bound="RequestOutput | PoolingRequestOutput[Any]")


class Accepted(Generic[Output]):
    """Iterate over it: its one growing output, after every change, until the change that finished it.

    Changes that come while nobody looks count as one, so a slow reader makes nothing grow but the output itself.

    Attributes:
        output: what there is so far. error: why the engine ended it, where it did.
    """

    def __init__(self, output: Output, abort: Callable[[Any], None]) -> None:
        self.output: Output = output
        self.error: EngineError | None = None
        self._changed = asyncio.Event()
        self._abort = abort

    async def __aiter__(self) -> AsyncIterator[Output]:
        finished = False
        while not finished:
            if not self.output.finished:
                await self._changed.wait()
            self._changed.clear()
            finished = self.output.finished
            yield self.output

    async def wait(self) -> Output:
        """The finished output."""
        async for _ in self:
            pass
        return self.output

    def changed(self) -> None:
        """For whoever fills `output`."""
        self._changed.set()

    def abort(self) -> None:
        """Nobody wants it any more. May be called at any time, also twice."""
        if not self.output.finished:
            self._abort(self)


class Generation(Accepted[RequestOutput]):
    """A request for text."""


class PoolingGeneration(Accepted[PoolingRequestOutput[Any]]):
    """A request for a vector. It has one change, its last."""
