"""`Generation`: one accepted request, as whoever waits for it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from bestiary.api.errors import EngineError
from bestiary.api.outputs import RequestOutput


class Generation:
    """Iterate over it: its one growing output, after every change, until the change that finished it.

    Changes that come while nobody looks count as one, so a slow reader makes nothing grow but the output itself.

    Attributes:
        output: what there is so far. error: why the engine ended it, where it did.
    """

    def __init__(self, output: RequestOutput, abort: Callable[[Generation], None]) -> None:
        self.output = output
        self.error: EngineError | None = None
        self._changed = asyncio.Event()
        self._abort = abort

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        finished = False
        while not finished:
            if not self.output.finished:
                await self._changed.wait()
            self._changed.clear()
            finished = self.output.finished
            yield self.output

    async def wait(self) -> RequestOutput:
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
