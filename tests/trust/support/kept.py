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

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Response:
        """Send a request, without a body by GET; its response must be read to its end before the next."""
        if self._response is not None and self._response.headers.get("connection") == "close":
            self.leave()
        if self._streams is None:
            self._streams = await asyncio.open_connection(LOCALHOST, self._port, limit=1 << 20)
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(head(self._port, "POST" if data else "GET", path, data, _JSON if data else None, last=False) + data)
        self._response = await answered(reader, writer)
        return self._response

    async def whole(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body."""
        response = await self.ask(path, body)
        return response.status, b"".join([piece async for piece in response.pieces()])

    def leave(self) -> None:
        """End the connection, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = self._response = None
