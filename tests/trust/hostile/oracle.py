"""What is true of every answer to a hostile input, and of the server after a group of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..support.client import LOCALHOST
from .row import KEYS, Outcome, Row

PATIENCE = 60.0
"""Seconds after which an input counts as not answered; the promise is `Row.seconds`, which is recorded."""
LEAKS = re.compile(
    r"/(?:home|root|tmp|usr|work|opt|etc|proc|var|dev|site-packages)\b|0x[0-9a-fA-F]{6,}|Traceback|<class|<function"
    r"|<bestiary|File \"|\.py\b|pydantic|starlette|uvicorn"
)
"""What tells of this machine or of our code; no answer may (E02)."""
_LONGEST_BODY = 8192
_LONGEST_VALUE = 80
"""64 characters, quotes and the mark of what was cut."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back until the connection ended; a status of 0 is nothing at all."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


async def exchange(port: int, data: bytes, *, host: str = LOCALHOST) -> Heard:
    """Send, and read to the end of the connection."""
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port, limit=2**20)
    found = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            while piece := await reader.read(2**16):
                found += piece
    writer.transport.abort()
    seconds = time.monotonic() - started
    head, _, body = found.partition(b"\r\n\r\n")
    if not head:
        return Heard(0, {}, b"", seconds)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Heard(int(first.split()[1]), headers, body[: int(headers.get("content-length", len(body)))], seconds)


@dataclass(slots=True)
class Verdict:
    """What is wrong with the answer to one row, and what it was."""

    row: Row
    heard: Heard
    complaints: list[str] = field(default_factory=list)
    outcome: Outcome = (0, None)

    @property
    def request_id(self) -> str:
        return self.heard.headers.get("x-request-id", "")

    def __str__(self) -> str:
        return f"{self.row}: {'; '.join(self.complaints)}: {self.heard.status} {self.heard.body[:300]!r}"


def judge(row: Row, heard: Heard) -> Verdict:
    """The whole oracle for one answer."""
    verdict = Verdict(row, heard)
    if heard.status == 0:
        if not row.deaf:
            verdict.complaints.append("no answer")
        return verdict
    error = None if heard.status < 400 else _error(verdict)
    verdict.outcome = (heard.status, None if error is None else error.get("code"))
    if row.method == "HEAD":
        verdict.outcome = (heard.status, row.outcomes[0][1])
    blamed = not row.outcomes and heard.status in (200, 400, 403, 404, 405, 413, 415)
    if verdict.outcome not in row.outcomes and not blamed:
        verdict.complaints.append(f"{verdict.outcome}, not {' or '.join(map(str, row.outcomes))}")
    if error is not None:
        verdict.complaints += _about_error(row, heard, error)
    return verdict


def _error(verdict: Verdict) -> dict[str, Any] | None:
    heard = verdict.heard
    verdict.complaints += _about_body(verdict.row, heard)
    if verdict.row.method == "HEAD":
        return None
    try:
        error: dict[str, Any] = json.loads(heard.body)["error"]
    except (ValueError, KeyError, TypeError):
        verdict.complaints.append("no error of OpenAI's shape")
        return None
    return error


def _about_body(row: Row, heard: Heard) -> list[str]:
    text, sent = heard.body.decode(errors="replace"), (row.raw or row.body).decode(errors="replace")
    found = [f"it tells {match[0]!r}" for match in LEAKS.finditer(text) if match[0] not in sent]
    found += ["it tells a key" for key in KEYS if key in text]
    if len(text) > _LONGEST_BODY:
        found.append(f"it has {len(text)} characters")
    return found


def _about_error(row: Row, heard: Heard, error: dict[str, Any]) -> list[str]:
    message, param, limit = error.get("message"), error.get("param"), error.get("limit")
    found = []
    if not {"message", "type", "param", "code", "request_id"} <= error.keys():
        found.append("fields are missing")
    if not isinstance(message, str) or not message:
        return [*found, "no message"]
    if row.param != "" and param != row.param:
        found.append(f"it names {param}, not {row.param}")
    if param is not None and param not in message:
        found.append("the message does not name the field")
    if limit is not None and limit not in message:
        found.append("the message does not tell the limit")
    value = error.get("value")
    if isinstance(value, str) and len(value) > _LONGEST_VALUE:
        found.append(f"the value has {len(value)} characters")
    if error.get("request_id") != heard.headers.get("x-request-id"):
        found.append("it names another request")
    if heard.status == 503 and not int(heard.headers.get("retry-after", 0)) > 0:
        found.append("it does not say when to come again")
    return found
