"""Answers of an OpenAI-compatible server, streamed. The standard library's HTTP client is all it needs."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from bestiary.api.errors import RequestError, UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.streaming import Interrupt, Writer

from .conversation import Answer, Message
from .sampling import SamplingChoice

_CONNECT_SECONDS, _READ_SECONDS, _LOOK_SECONDS = 10.0, 600.0, 0.1
_MAX_BODY = 2**22
_ALWAYS = ("temperature",)
_NEVER = ("n", "max_tokens", "logprobs")
_DEFAULTS = vars(SamplingParams())


@dataclass(frozen=True, slots=True)
class Server:
    """Where an OpenAI-compatible server is: ``http://host:port``, with ``/v1`` or without."""

    url: SplitResult
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def at(cls, url: str, api_key: str | None = None) -> Server:
        """Raises `UsageError`: `url` is none that a server can have."""
        try:
            parts = urlsplit(url)
            wrong = (
                parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0
            )
        except ValueError:
            wrong = True
        if wrong or not url.isascii() or not url.isprintable() or " " in url:
            raise UsageError("this is no server's URL", field="url", value=url, limit="http://HOST:PORT, or https")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("an API key is printable ASCII", field="api_key")
        return cls(parts, api_key)

    def connect(self) -> http.client.HTTPConnection:
        host = str(self.url.hostname)
        if self.url.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, self.url.port, timeout=_CONNECT_SECONDS, context=context)
        return http.client.HTTPConnection(host, self.url.port, timeout=_CONNECT_SECONDS)

    def path(self, name: str) -> str:
        base = self.url.path.rstrip("/").removesuffix("/v1")
        return f"{base}/v1/{name}"

    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {"Content-Type": "application/json", "Accept": "text/event-stream, application/json", **key}

    def models(self) -> list[Mapping[str, Any]]:
        """What it serves. Raises `RequestError`: it is not there, or does not say."""
        status, data = self._get(self.path("models"))
        if status != 200:
            raise refusal(status, data)
        try:
            return [each for each in json.loads(data)["data"] if isinstance(each["id"], str)]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RequestError("the server does not say which models it has", field="url") from None

    def facts(self) -> Mapping[str, Any]:
        """What a server of ours says of its model; empty for another one. Raises `RequestError`: it is not there."""
        status, data = self._get(self.path("models").removesuffix("/v1/models") + "/server/info")
        try:
            found = json.loads(data)["model"] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = self.connect()
        try:
            connection.request("GET", path, headers=self.headers())
            response = connection.getresponse()
            return response.status, response.read(_MAX_BODY)
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(error) from error
        finally:
            connection.close()

    def unreachable(self, error: Exception) -> RequestError:
        return RequestError(
            f"the server cannot be reached, or broke off: {error or type(error).__name__}", code="SERVER_UNREACHABLE",
            field="url", value=self.url.geturl(), fix="check that it runs there: bestiary serve MODEL starts one",
        )  # fmt: skip


def refusal(status: int, data: bytes) -> RequestError:
    """A server's error as ours: OpenAI's form, or whatever it said."""
    try:
        told = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        told = None
    if not isinstance(told, dict):
        return RequestError(f"the server answered with status {status}", value=data[:64].decode(errors="replace"))
    return told_error(told)


def told_error(told: Mapping[str, Any]) -> RequestError:
    """The object ``error`` of a body, or of an event."""
    found = RequestError(f"the server says: {str(told.get('message'))[:2000]}", field=_text(told.get("param")))
    found.error_code = _text(told.get("code")) or found.error_code
    return found


def _text(value: object) -> str | None:
    return value[:64] if isinstance(value, str) and value.isprintable() else None


class ServerResponder:
    """A server as a `Responder`.

    Args:
        model: which of its models answers; None is the first.
    """

    def __init__(self, server: Server, model: str | None) -> None:
        self._server = server
        listed = server.models()
        if model is None and not listed:
            raise RequestError("the server has no model", field="model")
        self.name = model if model is not None else str(listed[0]["id"])
        length = next((each.get("max_model_len") for each in listed if each["id"] == self.name), None)
        self.context = length if isinstance(length, int) else None

    def answer(
        self, messages: Sequence[Message], choice: SamplingChoice, writer: Writer | None, interrupt: Interrupt
    ) -> Answer:
        body = {"model": self.name, "messages": list(messages), "stream": True,
                "stream_options": {"include_usage": True}, **sampling_fields(choice)}  # fmt: skip
        text, reason = "", "abort"
        usage: Mapping[str, Any] = {}
        first: float | None = None
        start = time.monotonic()
        for event in events(self._server, body, interrupt):
            if isinstance(event.get("error"), dict):
                raise told_error(event["error"])
            usage = event.get("usage") or usage
            for part in event.get("choices") or []:
                text += part.get("delta", {}).get("content") or ""
                reason = part.get("finish_reason") or reason
            if text and first is None:
                first = time.monotonic() - start
            if writer is not None:
                writer.update(text)
        if reason == "abort" and not interrupt.pressed:
            raise self._server.unreachable(EOFError("the answer has no end"))
        return Answer(text, "abort" if interrupt.pressed else reason, _stats(usage, first, time.monotonic() - start))


def sampling_fields(choice: SamplingChoice) -> dict[str, Any]:
    """The parameters that differ from their defaults: what a server does not know, it need not hear of."""
    found = {name: value for name, value in vars(choice.params).items()
             if name in _ALWAYS or (name not in _NEVER and value != _DEFAULTS[name])}  # fmt: skip
    if not choice.default_length and choice.params.max_tokens is not None:
        found["max_tokens"] = choice.params.max_tokens
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _stats(usage: Mapping[str, Any], first: float | None, total: float) -> dict[str, Any]:
    """As `streaming.stats`; None for what the server does not tell."""
    generated = usage.get("completion_tokens")
    rest = None if first is None else total - first
    return {
        "prompt_tokens": usage.get("prompt_tokens"),
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        "generated_tokens": generated,
        "time_to_first_token_s": first,
        "total_s": total,
        "tokens_per_s": (generated - 1) / rest if rest and isinstance(generated, int) and generated > 1 else None,
    }


def events(server: Server, body: Mapping[str, Any], interrupt: Interrupt) -> Iterator[Mapping[str, Any]]:
    """The events of a streamed answer, until it ends or `interrupt` is pressed; then the connection is closed, which
    tells the server to stop.

    Raises:
        RequestError: the server refuses the request, cannot be reached, or sends what is no event.
    """
    reader = _Reader(server, json.dumps(body).encode())
    try:
        for line in reader.lines(interrupt):
            if not line.startswith(b"data:"):
                continue  # an empty line, a comment, an event's name
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise RequestError("the server sent what is no event", value=data[:64].decode(errors="replace"))
            yield event
    finally:
        reader.close()


class _Reader:
    """Reads a response in a thread of its own, so that Ctrl-C is heard while nothing comes."""

    def __init__(self, server: Server, body: bytes) -> None:
        self._server = server
        self._connection = server.connect()
        self._socket: socket.socket | None = None
        self._found: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(body,), daemon=True, name="answer").start()

    def lines(self, interrupt: Interrupt) -> Iterator[bytes]:
        while not interrupt.pressed:
            try:
                found = self._found.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(found, RequestError):
                raise found
            if isinstance(found, Exception):
                raise self._server.unreachable(found) from found
            if found is None:
                return
            yield found

    def close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it may be closed already
                self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, body: bytes) -> None:
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            self._socket.settimeout(_READ_SECONDS)
            self._connection.request("POST", self._server.path("chat/completions"), body, self._server.headers())
            response = self._connection.getresponse()
            if response.status != 200:
                self._found.put(refusal(response.status, response.read(_MAX_BODY)))
                return
            while line := response.readline(_MAX_BODY):
                self._found.put(line)
            self._found.put(None)
        except Exception as error:  # told by whoever reads the lines; after `close` nobody does
            self._found.put(error)
