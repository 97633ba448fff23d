"""A server that speaks OpenAI's chat protocol, in threads of this process, and answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """Attributes:
    answers: what is said, request by request, in pieces; the last one again and again.
    hold: after so many pieces of an answer, wait for `go_on`. left: somebody went while an answer was being sent.
    status, error: refuse requests with it. broken: end the connection in the middle of an answer.
    raw: send these bytes in place of events. bodies, paths, keys: of the requests, in order.
    """

    answers: Sequence[Sequence[str]] = (("Hello", ", ", "you."),)
    hold: int | None = None
    status: int = 200
    error: dict[str, Any] | bytes | None = None
    broken: bool = False
    raw: bytes | None = None
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "beast", "max_model_len": 512}])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def do_GET(self) -> None:
        self._note()
        self._send(json.dumps({"object": "list", "data": self.script.models}).encode())

    def do_POST(self) -> None:
        self._note()
        self.script.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if self.script.status != 200:
            told = (
                self.script.error
                if isinstance(self.script.error, bytes)
                else json.dumps({"error": self.script.error}).encode()
            )
            self._send(told, self.script.status)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for data in self._events():
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
        except OSError:
            self.script.left.set()
            self.close_connection = True

    def _events(self) -> Iterator[bytes]:
        if self.script.raw is not None:
            yield self.script.raw
            yield b""
            return
        pieces = self.script.answers[min(len(self.script.bodies), len(self.script.answers)) - 1]
        yield b": a comment\n\n"
        for index, piece in enumerate(pieces):
            if index == self.script.hold:
                yield from self._waiting()
            if self.script.broken and index:
                raise ConnectionResetError
            yield event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": len(pieces),
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"
        yield b""

    def _waiting(self) -> Iterator[bytes]:
        """Comments, as a server sends to see whether somebody is there."""
        self.script.held.set()
        while not self.script.go_on.wait(0.02):
            yield b": still working\n\n"

    def _note(self) -> None:
        self.script.paths.append(self.path)
        self.script.keys.append(self.headers.get("authorization"))

    def _send(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The server's URL, as long as it runs."""
    scripted = type("Scripted", (Handler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), scripted) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            script.go_on.set()
            server.shutdown()
            thread.join()
