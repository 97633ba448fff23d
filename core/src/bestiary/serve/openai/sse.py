"""Server-sent events: a stream of ``data:`` lines that ends when it is complete, when its reader has left, or when the
reader has not read for too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
ABORT = "abort"
"""Where a connection's way to end it at once stands in the scope's state, if its server offers one."""
_COMMENT = b": still working\n\n"
_TICK = 1.0


def event(data: bytes, name: str | None = None) -> bytes:
    """One event; `data` is JSON, so a single line."""
    return b"data: %b\n\n" % data if name is None else b"event: %b\ndata: %b\n\n" % (name.encode(), data)


class EventStream:
    """An ASGI response that sends what `events` yields, whole events each time.

    `events` is closed whatever happens, and has to clean up in a `finally`.

    Args:
        write_timeout: seconds the client may take to read what was sent; then the connection is ended.
        heartbeat: seconds of silence after which a comment line says that somebody is there.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        write_timeout: float,
        heartbeat: float,
    ) -> None:
        self._events = events
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._write_timeout = write_timeout
        self._heartbeat = heartbeat
        self._last = time.monotonic()
        self._sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers += [(b"x-accel-buffering", b"no"), *self._headers]
        writer = asyncio.create_task(self._write(headers, send))
        watcher = asyncio.create_task(self._watch(receive, send))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            elif watcher.result() == "slow":
                scope.get("state", {}).get(ABORT, _nothing)()
        finally:
            for task in (writer, watcher):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task
            await self._events.aclose()

    async def _write(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in self._events:
            self._sending = True
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._sending = False
            self._last = time.monotonic()
        await send({"type": "http.response.body", "body": b""})

    async def _watch(self, receive: Receive, send: Send) -> str:
        """Ends with "gone" or "slow", whichever becomes true."""
        while True:
            try:
                async with asyncio.timeout(_TICK):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    return "gone"
                continue
            except TimeoutError:
                silence = time.monotonic() - self._last
            if self._sending and silence > self._write_timeout:
                return "slow"
            if not self._sending and silence > self._heartbeat:
                self._last = time.monotonic()
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})


def _nothing() -> None:
    return
