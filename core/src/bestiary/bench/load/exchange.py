"""HTTP/1.1 as cheaply as a load generator needs it: a connection that carries one request after another.

The response is parsed where it arrives, in `data_received`, so that an event costs a few microseconds and carries the
time at which its bytes came, not the time at which somebody was woken to look at them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

OnEvent = Callable[[bytes, float], None]
"""(the data of a server-sent event, when it came)."""

_MAX_HEAD = 2**16
_MAX_BODY = 2**16
_MAX_EVENT = 2**22


class BadResponse(Exception):
    """What came is no response that we understand."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers of a response; names in lower case."""

    status: int
    headers: Mapping[bytes, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Raises `BadResponse`."""
        first, *lines = data.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise BadResponse(f"no status line: {first[:64]!r}")
        pairs = (line.partition(b":") for line in lines)
        return cls(int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs})

    def has(self, name: bytes, word: bytes) -> bool:
        return word in self.headers.get(name, b"").lower()


class Connection(asyncio.Protocol):
    """One connection. `status` and `body` (the beginning of one that is no stream of events) are the last response's.

    Args:
        clock: the time that events get.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: Head | None = None
        self._done: asyncio.Future[None] | None = None
        self._on_event: OnEvent | None = None
        self._left: int | None = None
        self._chunked = self._complete = False
        self._events = bytearray()
        self.status = 0
        self.body = b""
        self.answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing() and self._done is None

    async def exchange(self, request: bytes, on_event: OnEvent) -> None:
        """Send a request and take its response in; returns when that is complete.

        Raises:
            BadResponse, ConnectionError: it does not come to an end. `answered` says whether anything came at all.
        """
        if self._transport is None or self._done is not None:
            raise ConnectionResetError("the connection is closed")
        self._head, self._left, self._on_event, self._complete = None, None, on_event, False
        self._events.clear()
        self.status, self.body, self.answered = 0, b"", False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._done = None
            if not self._complete:
                self.close()  # something of this response may still come

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        self.answered = True
        self._buffer += data
        try:
            while self._done is not None and not self._done.done() and self._step(now):
                pass
        except (BadResponse, ValueError) as error:
            self._fail(BadResponse(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._head is not None and self._left is None and not self._chunked:
            self._finish()  # a body without a length ends with the connection
        else:
            self._fail(exc or ConnectionResetError("the connection was closed in the middle"))

    def _step(self, now: float) -> bool:
        """Take one thing out of the buffer: a head, a piece of a body. Returns whether it was there."""
        if self._head is None:
            return self._take_head()
        return self._take_chunk(now) if self._chunked else self._take_rest(now)

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise BadResponse("the head of a response has no end")
            return False
        self._head = Head.parse(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        self.status = self._head.status
        length = self._head.headers.get(b"content-length")
        self._left = None if length is None else int(length)
        self._chunked = self._head.has(b"transfer-encoding", b"chunked")
        if self._left == 0:
            self._finish()
        return True

    def _take_chunk(self, now: float) -> bool:
        buffer = self._buffer
        line = buffer.find(b"\r\n")
        if line < 0:
            return False
        size = int(buffer[:line].partition(b";")[0], 16)
        end = line + 2 + size
        if size > _MAX_EVENT:
            raise BadResponse("a piece of a response is too large")
        if len(buffer) < end + 2:
            return False
        if size:
            self._take(buffer[line + 2 : end], now)
        del buffer[: end + 2]
        if not size:
            self._finish()
        return True

    def _take_rest(self, now: float) -> bool:
        """A body with a length, or one that ends with the connection."""
        piece = self._buffer[:] if self._left is None else self._buffer[: self._left]
        del self._buffer[: len(piece)]
        if piece:
            self._take(piece, now)
        if self._left is not None:
            self._left -= len(piece)
            if self._left == 0:
                self._finish()
        return bool(piece)

    def _take(self, data: bytearray, now: float) -> None:
        """A piece of the body: events, or what is said in place of them."""
        if self._head is None or not self._head.has(b"content-type", b"text/event-stream"):
            self.body = (self.body + bytes(data))[:_MAX_BODY]
            return
        events = self._events
        events += data
        while (line := events.find(b"\n")) >= 0:
            if events.startswith(b"data:") and self._on_event is not None:
                self._on_event(bytes(events[5:line]).strip(), now)
            del events[: line + 1]
        if len(events) > _MAX_EVENT:
            raise BadResponse("an event has no end")

    def _finish(self) -> None:
        self._complete = True
        if self._head is not None and self._head.has(b"connection", b"close"):
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
        self.close()


class Pool:
    """Connections to one server, used again where that is possible."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self._host, self._port, self._context, self._clock = host, port, context, clock
        self._idle: list[Connection] = []

    async def exchange(self, request: bytes, on_event: OnEvent) -> Connection:
        """Send `request` over some connection; returns the one that has its response.

        A connection that the server closed while it was idle is replaced by a new one.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                continue
            try:
                await self._on(connection, request, on_event)
            except ConnectionError:
                if connection.answered:
                    raise
            else:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._clock), self._host, self._port, ssl=self._context
        )
        await self._on(connection, request, on_event)
        return connection

    async def _on(self, connection: Connection, request: bytes, on_event: OnEvent) -> None:
        await connection.exchange(request, on_event)
        if connection.usable:
            self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
