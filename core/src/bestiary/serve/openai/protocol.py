"""Uvicorn's HTTP/1.1 protocol with our manners: refusals in JSON, no waiting for clients that say nothing, and a way
to end a connection whose client does not read."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from bestiary.api.errors import RequestError

from .errors import document, refused
from .sse import ABORT

HEAD_SECONDS = 30.0
"""How long a new connection may take to send its first request's head."""


class Protocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, ABORT: self._abort}, _loop)
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._begun()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:
            self._begun()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too long a head."""
        error = RequestError("this is no HTTP request, or its head is too long", code="BAD_HTTP", limit="64 KiB")
        request_id = uuid.uuid4().hex
        refused(error, request_id, method="-", path="-")
        body = json.dumps(document(error, request_id)).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()), (b"connection", b"close"),
        ]  # fmt: skip
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _begun(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _abort(self) -> None:
        self.transport.abort()
