"""An HTTP client of our own on plain sockets, which can leave in the middle of anything, read slowly, and count."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

LOCALHOST = "127.0.0.1"
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Response:
    """A response whose body is still to come; owns the connection."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises IncompleteReadError where the connection ends before it does."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            yield await self.reader.readexactly(int(self.headers.get("content-length", 0)))
            return
        while size := int(await self._line(), 16):
            yield await self.reader.readexactly(size)
            await self._line()
        await self._line()

    async def _line(self) -> bytes:
        return (await self.reader.readuntil(b"\r\n"))[:-2]

    async def read(self) -> Answer:
        body = b"".join([piece async for piece in self.pieces()])
        await self.close()
        return Answer(self.status, self.headers, body)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """End the connection with an RST, as a client that crashed does."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


def head(port: int, method: str, path: str, data: bytes, headers: Mapping[str, str] | None, *, last: bool) -> bytes:
    """A request's head. `last`: the connection is to end after its answer."""
    given = {"host": f"{LOCALHOST}:{port}", "connection": "close" if last else "keep-alive"}
    given |= {"content-length": str(len(data))} if data else {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (given | dict(headers or {})).items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
    """The next response on a connection, when its head is there."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    found = {name.lower(): value for name, value in fields.items()}
    return Response(int(lines[0].split()[1]), found, reader, writer)


async def send(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Send a request on a connection of its own; returns when the head of the response is there.

    Args:
        body: sent as it is where it is bytes, otherwise as JSON.
    """
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if body is None or isinstance(body, bytes) else {"content-type": "application/json"}
    reader, writer = await asyncio.open_connection(LOCALHOST, port, limit=1 << 20)
    try:
        writer.write(head(port, method, path, data, kind | dict(headers or {}), last=True) + data)
        await writer.drain()
        return await answered(reader, writer)
    except BaseException:
        writer.transport.abort()
        raise


async def ask(
    port: int, path: str, body: Any = None, *, method: str = "", headers: Mapping[str, str] | None = None
) -> Answer:
    """A request and its whole answer."""
    response = await send(port, method or ("GET" if body is None else "POST"), path, body, headers)
    return await response.read()


@dataclass
class Stream:
    """A stream of completions, and all that was seen of it.

    Attributes:
        token_ids, texts: what came, by choice. ends: finish reasons, by choice, every one that came.
        error: what the stream ended with instead. done: how often ``[DONE]`` came. cut: the connection broke.
        usage: of the last chunk that had it. gap: the longest wait between two events, in seconds.
    """

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    ends: list[tuple[int, str]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    cut: bool = False
    usage: dict[str, Any] | None = None
    gap: float = 0.0
    events: int = 0

    async def follow(self, response: Response) -> AsyncIterator[Stream]:
        """Read the stream, and show itself after every event; then the connection is ended."""
        last = time.monotonic()
        try:
            async for piece in response.pieces():
                for line in piece.decode().split("\n"):
                    if line.startswith("data: "):
                        now = time.monotonic()
                        self.gap, last = max(self.gap, now - last), now
                        self.take(line.removeprefix("data: "))
                        yield self
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut = True
        finally:
            response.writer.transport.abort()

    async def read(self, response: Response) -> Stream:
        """The whole stream, on a connection that goes on."""
        async for piece in response.pieces():
            for line in piece.decode().split("\n"):
                if line.startswith("data: "):
                    self.take(line.removeprefix("data: "))
        return self

    def take(self, data: str) -> None:
        self.events += 1
        if data == "[DONE]":
            self.done += 1
            return
        event = json.loads(data)
        if "error" in event:
            self.errors.append(event["error"])
            return
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            index = choice["index"]
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            self.texts[index] = self.texts.get(index, "") + (text or "")
            self.token_ids.setdefault(index, []).extend(choice.get("token_ids") or [])
            if choice.get("finish_reason") is not None:
                self.ends.append((index, choice["finish_reason"]))

    @property
    def terminals(self) -> int:
        """How many ends it had; one is right."""
        return len(self.errors) + (1 if self.done else 0) + (1 if self.cut and not (self.done or self.errors) else 0)
