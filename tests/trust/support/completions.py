"""What a client of a server of the chaos plugin does: streams of completions, sung by canaries or cut in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from .chaos import HARMLESS, as_fields
from .client import Response, Stream, send
from .scene import PATIENCE, SONGS
from .server import Server

T = TypeVar("T")
FIELDS = as_fields(HARMLESS)
LONG = FIELDS | {"prompt": SONGS[0], "stream": True, "max_tokens": 900}
CHAOS = ("--hf-overrides", '{"architectures": ["ChaosForCausalLM"]}')


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def started(server: Server, **fields: Any) -> tuple[Response, Stream, AsyncIterator[Stream]]:
    """A stream that has had its first event."""
    response = await send(server.port, "POST", "/v1/completions", LONG | fields)
    assert response.status == 200
    stream = Stream()
    following = stream.follow(response)
    await anext(following)
    return response, stream, following


async def to_the_end(following: AsyncIterator[Stream]) -> None:
    async for _ in following:
        pass
