"""One accepted request as whoever waits for it sees it: `Generation` for a text, `PoolingGeneration` for a vector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from bestiary.api.errors import EngineError
from bestiary.api.outputs import PoolingRequestOutput, RequestOutput
from bestiary.engine.parallel.messages import Trouble

Output = TypeVar("Output", bound="RequestOutput | PoolingRequestOutput[Any]")


class Accepted(Generic[Output]):
    """Iterate over it: its one growing output, after every change, until the change that finished it.

    Changes that come while nobody looks count as one, so a slow reader makes nothing grow but the output itself.

    Attributes:
        output: what there is so far. error: why it ended, where that is an error.
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
        if self.output.finished and self.error is None:
            self.error = _failure(self.output)
        self._changed.set()

    def abort(self) -> None:
        """Nobody wants it any more. May be called at any time, also twice."""
        if not self.output.finished:
            self._abort(self)


def _failure(output: RequestOutput | PoolingRequestOutput[Any]) -> EngineError | None:
    """The first error that an answer ended with, as the engine says it: ``"CODE: message"``."""
    answers = output.outputs if isinstance(output, RequestOutput) else [output.outputs]
    for each in answers:
        if each.finish_reason == "error":
            code, _, message = str(each.stop_reason).partition(": ")
            return Trouble(code, message or code).raised_as(EngineError)
    return None


class Generation(Accepted[RequestOutput]):
    """A request for text."""


class PoolingGeneration(Accepted[PoolingRequestOutput[Any]]):
    """A request for a vector. It has one change, its last."""
