"""Following accepted requests to their end, with an eye on whether anybody still waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from bestiary.api.errors import BestiaryError
from bestiary.api.outputs import PoolingRequestOutput, RequestOutput

from .errors import from_answer

if TYPE_CHECKING:
    from starlette.requests import Request

    from bestiary.serve.generation import Accepted

    from .metrics import Clock

Output = TypeVar("Output", RequestOutput, PoolingRequestOutput[Any])


class ClientGone(Exception):
    """Nobody waits for the answer; it is not finished, and none is sent."""


async def changes(generations: Sequence[Accepted[Any]], clocks: Sequence[Clock] = ()) -> AsyncIterator[int]:
    """The index of a request, each time its output has changed; ends when all have.

    Changes that nobody has looked at yet are one change, so that a slow reader makes nothing grow.
    """
    if len(generations) == 1:
        async for output in generations[0]:
            if clocks:
                clocks[0].see(output)
            yield 0
        return
    changed: dict[int, None] = {}
    event = asyncio.Event()

    async def watch(index: int) -> None:
        async for output in generations[index]:
            if clocks:
                clocks[index].see(output)
            changed[index] = None
            event.set()

    tasks = [asyncio.create_task(watch(index)) for index in range(len(generations))]
    for task in tasks:
        task.add_done_callback(lambda _: event.set())
    try:
        while changed or not all(task.done() for task in tasks):
            await event.wait()
            event.clear()
            while changed:
                index = next(iter(changed))
                del changed[index]
                yield index
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def finished(
    http: Request, generations: Sequence[Accepted[Output]], clocks: Sequence[Clock] = ()
) -> list[Output]:
    """The complete outputs.

    Raises:
        BestiaryError: one of them failed; the others are ended. ClientGone.
    """
    with aborting(generations):
        async with _watching(http) as gone:
            work = asyncio.ensure_future(_drain(generations, clocks))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClientGone
                work.result()
            finally:
                work.cancel()
    for generation in generations:
        if (error := failure(generation)) is not None:
            raise error
    return [generation.output for generation in generations]


def failure(generation: Accepted[Any]) -> BestiaryError | None:
    """What a generation that is over died of."""
    if generation.error is not None:
        return generation.error
    answers = generation.output.outputs
    failed = next(
        (each for each in (answers if isinstance(answers, list) else [answers]) if each.finish_reason == "error"), None
    )
    return None if failed is None else from_answer(failed.stop_reason)


class aborting:
    """A context at whose end none of the generations runs any longer."""

    def __init__(self, generations: Sequence[Accepted[Any]]) -> None:
        self._generations = generations

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        for generation in self._generations:
            if not generation.output.finished:
                generation.abort()


async def _drain(generations: Sequence[Accepted[Any]], clocks: Sequence[Clock]) -> None:
    async for index in changes(generations, clocks):
        if failure(generations[index]) is not None:
            return


@asynccontextmanager
async def _watching(http: Request) -> AsyncIterator[asyncio.Task[None]]:
    """A task that ends when the client has left."""

    async def leave() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(leave())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
