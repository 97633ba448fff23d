"""Answers of a server, streamed. The standard library's HTTP client, and a thread that reads, are all it needs."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.streaming import Interrupt, Writer

from .conversation import Answer, Message
from .sampling import SamplingChoice
from .server import MAX_BODY, Server, refusal, told_error

_READ_SECONDS, _LOOK_SECONDS = 600.0, 0.1
_ALWAYS = ("temperature",)
_NEVER = ("n", "max_tokens", "logprobs")
_DEFAULTS = vars(SamplingParams())


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
        text, thought, reason = "", "", "abort"
        usage: Mapping[str, Any] = {}
        first: float | None = None
        start = time.monotonic()
        for event in events(self._server, body, interrupt):
            if isinstance(event.get("error"), dict):
                raise told_error(event["error"])
            usage = event.get("usage") or usage
            for part in event.get("choices") or []:
                delta = part.get("delta", {})
                text += delta.get("content") or ""
                thought += delta.get("reasoning_content") or delta.get("reasoning") or ""
                reason = part.get("finish_reason") or reason
            if (text or thought) and first is None:
                first = time.monotonic() - start
            if writer is not None and text:
                writer.update(text)
            elif writer is not None and thought:
                writer.think(thought)
        if reason == "abort" and not interrupt.pressed:
            raise self._server.unreachable(EOFError("the answer has no end"))
        how = _stats(usage, first, time.monotonic() - start)
        return Answer(text, "abort" if interrupt.pressed else reason, how, reasoning=thought)


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
                self._found.put(refusal(response.status, response.read(MAX_BODY)))
                return
            while line := response.readline(MAX_BODY):
                self._found.put(line)
            self._found.put(None)
        except Exception as error:  # told by whoever reads the lines; after `close` nobody does
            self._found.put(error)
