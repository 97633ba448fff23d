"""A tiny OpenAI-compatible server of asyncio streams, which answers what a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[dict[str, Any], int], list[bytes]]
"""(a request's body, its number) → what is written, piece by piece."""

MODELS = {"object": "list", "data": [{"id": "beast"}]}


def plain(status: int, document: Any, *headers: str) -> bytes:
    """A response with a length."""
    data = json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(document: Any) -> bytes:
    return chunk(b"data: " + json.dumps(document).encode() + b"\n\n")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
END = [chunk(b"data: [DONE]\n\n"), chunk(b"")]


def streamed(body: dict[str, Any], number: int) -> list[bytes]:
    """As many tokens as are wanted, in the form of the endpoint, and usage."""
    chat = "messages" in body
    pieces = [
        event({"choices": [{"index": 0, **({"delta": {"content": " a"}} if chat else {"text": " a"})}]})
        for _ in range(body["max_tokens"])
    ]
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    usage = event({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": body["max_tokens"]}})
    return [HEAD, *pieces, last, usage, *END]


@dataclass
class Tiny:
    """Attributes:
    gather: answer nobody before so many have asked. keeps: the connection after an answer.
    bodies, heads: of the POST requests, in order. connections: how many there were. most_open: requests at once.
    """

    answer: Answer = streamed
    delay: float = 0.0
    gather: int = 0
    keeps: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            path = head.split()[1]
            writer.write(plain(200, MODELS) if path == "/v1/models" else plain(404, {}))
            await writer.drain()
            return True
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        self.heads.append(head)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        while len(self.bodies) < self.gather:
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.delay)
        for piece in self.answer(body, len(self.bodies) - 1):
            writer.write(piece)
            await writer.drain()
        self.open -= 1
        return self.keeps

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its URL, in the running loop."""
        server = await asyncio.start_server(self, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
