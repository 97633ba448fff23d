"""A connection that is kept: many requests over it, one after another, as clients in earnest send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from .client import LOCALHOST, Response, answered, head

_JSON = {"content-type": "application/json"}


class Kept:
    """Owns one connection to a server, which it opens again after `leave`, and where the server has ended it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._response: Response | None = None

    async def ask(self, path: str, body: Mapping[str, Any] | bytes | None = None) -> Response:
        """Send a request, without a body by GET; its response must be read to its end before the next."""
        await self.send(path, body)
        if self._streams is None:
            raise ConnectionError("somebody else has left")
        self._response = await answered(*self._streams)
        return self._response

    async def whole(self, path: str, body: Mapping[str, Any] | bytes | None = None) -> tuple[int, bytes]:
        """Status and body."""
        response = await self.ask(path, body)
        return response.status, b"".join([piece async for piece in response.pieces()])

    async def send(self, path: str, body: Mapping[str, Any] | bytes | None, share: float = 1.0) -> None:
        """Send a request, or the first part of it, and wait for nothing."""
        if self._response is not None and self._response.headers.get("connection") == "close":
            self.leave()
        if self._streams is None:
            self._streams = await asyncio.open_connection(LOCALHOST, self._port, limit=1 << 20)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        whole = head(self._port, method, path, data, _JSON if data else None, last=False) + data
        self._streams[1].write(whole[: int(len(whole) * share)])

    def leave(self) -> None:
        """End the connection, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = self._response = None
