"""`Row`: one hostile input, and what the server answers to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT, TEXT, ANSWER, TOKENS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"
HI = [{"role": "user", "content": "Hi"}]
KEYS = ("key-of-the-first-tenant", "key-of-the-second-tenant")
HOST = "localhost"
Outcome = tuple[int, str | None]
"""A status and the code of the error; 200 has none."""
FINE: Outcome = (200, None)
SECONDS = 1.0
"""Within which a server on an idle machine says no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request over a connection of its own.

    Attributes:
        id: of the kind of input, as in the programme's table.
        outcomes: what may be answered, mostly one thing; none named: an answer, or a refusal that blames the request.
        param: the field that the refusal names; "" where it does not matter.
        headers: beside those of every request; None takes one away.
        raw: sent as it is, in place of all others.
        deaf: the server may end the connection before everything is sent, so that no answer is seen.
        seconds: see `SECONDS`.
    """

    id: str
    outcomes: tuple[Outcome, ...]
    path: str = TEXT
    body: bytes = b""
    param: str | None = ""
    method: str = "POST"
    headers: Mapping[str, str | None] = field(default_factory=dict)
    raw: bytes | None = None
    deaf: bool = False
    seconds: float = SECONDS

    def wire(self, request_id: str) -> bytes:
        """The bytes that are sent."""
        if self.raw is not None:
            return self.raw
        usual: dict[str, str | None] = {
            "host": HOST, "authorization": f"Bearer {KEYS[0]}", "content-type": "application/json",
            "content-length": str(len(self.body)), "x-request-id": request_id, "connection": "close",
        }  # fmt: skip
        lines = {**usual, **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + self.body

    def __str__(self) -> str:
        sent = self.raw if self.raw is not None else self.body
        return f"{self.id} {self.method[:10]} {self.path[:60]} {sent[:120]!r}"


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def refused(id_: str, body: Any, code: str = "BAD_REQUEST", param: str | None = "", **others: Any) -> Row:
    """A row that is answered with 400 and this code."""
    return Row(id=id_, body=encoded(body), outcomes=((400, code),), param=param, **others)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HI, "max_tokens": 4} | fields


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hi", "max_tokens": 4} | fields


def literal(body: Mapping[str, Any], name: str, value: str) -> bytes:
    """`body` with one more field, whose value is written as it stands."""
    return json.dumps(body)[:-1].encode() + f', "{name}": {value}}}'.encode()
