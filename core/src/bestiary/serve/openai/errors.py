"""Errors as OpenAI's clients know them: a status, and ``{"error": {"message", "type", "param", "code", …}}``.

A body holds what the client sent, which rule it broke and what to do; never a path of this machine, an address, a
traceback or a key. What is not an error of ours is a defect: 500, and nothing but the request's id.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.api import catalogue
from bestiary.api.errors import BestiaryError, EngineError, RequestError, UsageError, shorten

if TYPE_CHECKING:
    from starlette.responses import Response

logger = logging.getLogger("bestiary.http")

_RETRY_AFTER = {"QUEUE_FULL": 1, "BODIES_LIMIT": 1, "SERVER_SHUTDOWN": 30}
_RETRY_AFTER_RESTART = 5
_FAILURES: Mapping[str, str] = {
    "INTERNAL": "the server failed; its log says why, under this request's id",
    "NUMERICAL": "the model computed what is no number, and the answer was ended",
    "MODEL_FAILED": "the model failed on this request",
    "SERVER_SHUTDOWN": "the server is shutting down",
    "ENGINE_STALLED": "the engine did not finish a step in time, and was ended",
}
"""What a client is told of failures that are not its own; the log has the details."""
_FAILURE = "the engine failed, and the answer with it"
_LOWER = {
    "INVALID_API_KEY", "MODEL_NOT_FOUND", "CONTEXT_LENGTH_EXCEEDED", "ENGINE_DEAD", "NUMERICAL", "SERVER_SHUTDOWN",
}  # fmt: skip
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ROOTS = "|".join(re.escape(name) for name in os.listdir("/"))
_PATH = re.compile(rf"(?<![\w/:.])/(?:{_ROOTS})\b(?:/[\w.@+~ -]+)*")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_SAID = re.compile(r"(?P<code>[A-Z][A-Z_]+): (?P<message>.*)", re.DOTALL)
_MAX_LOGGED = 64


def internal_error() -> BestiaryError:
    """What a defect of ours looks like from outside."""
    return BestiaryError(_FAILURES["INTERNAL"], code="INTERNAL")


def from_answer(stop_reason: object) -> BestiaryError:
    """The error of an answer that ended with one: ``"MODEL_FAILED: …"``, or a word: ``"numerical"``."""
    match = _SAID.fullmatch(str(stop_reason))
    if match is None:
        return EngineError(_FAILURES["NUMERICAL"], code="NUMERICAL")
    known = catalogue.find(match["code"])
    kind = RequestError if known is not None and known.status < 500 else EngineError
    return kind(match["message"], code=match["code"])


def status_of(error: BestiaryError) -> int:
    """The HTTP status."""
    known = catalogue.find(error.error_code)
    if known is not None:
        return known.status
    return 400 if isinstance(error, RequestError | UsageError) else 500


def document(error: BestiaryError, request_id: str) -> dict[str, Any]:
    """The body that tells of `error`."""
    status = status_of(error)
    code = error.error_code.lower() if error.error_code in _LOWER else error.error_code
    usual = "invalid_request_error" if status < 500 else "server_error"
    if not isinstance(error, RequestError | UsageError):
        error = BestiaryError(_FAILURES.get(error.error_code, _FAILURE), code=error.error_code)
    shown = error.as_dict()
    body = {"message": _sentence(error), "type": _TYPES.get(status, usual), "param": shown["field"], "code": code}
    body |= {name: shown[given] for name, given in _EXTRAS if shown[given] not in (None, [])}
    return {"error": _without_secrets(body) | {"request_id": request_id}}


_EXTRAS = (("limit", "rule"), ("value", "value"), ("details", "details"), ("fix", "fix"))


def refused(error: BestiaryError, request_id: str, *, method: str, path: str) -> None:
    """Write to the log that a request was refused: one line, without anything of its body."""
    status = status_of(error)
    logger.warning(
        "refused %s %s: %d %s field=%s request=%s",
        _plain(method), _plain(path), status, error.error_code, _plain(error.field or "-"), request_id,
        extra={"request_id": request_id, "code": error.error_code, "status": status},
    )  # fmt: skip


def refusal(error: BestiaryError, request_id: str, *, method: str, path: str) -> Response:
    """The response that says `error`; the log says so too."""
    from starlette.responses import Response

    refused(error, request_id, method=method, path=path)
    status = status_of(error)
    headers = {}
    if status == 503:
        headers["retry-after"] = str(_RETRY_AFTER.get(error.error_code, _RETRY_AFTER_RESTART))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.error_code == "METHOD_NOT_ALLOWED":
        headers["allow"] = str(error.limit)
    body = json.dumps(document(error, request_id), ensure_ascii=True).encode()
    return Response(body, status, headers, "application/json")


def _sentence(error: BestiaryError) -> str:
    """Message, field, limit and value in one line: what clients show is the message alone."""
    text = error.message
    if error.field is not None and error.field not in text:
        text = f"{error.field}: {text}"
    if error.limit is not None and str(error.limit) not in text:
        text += f"; allowed: {error.limit}"
    if error.value is not None:
        text += f"; given: {shorten(error.value)}"
    return text


def _without_secrets(value: Any) -> Any:
    """Paths that exist on this machine and addresses, which errors of loaders name, are taken out."""
    if isinstance(value, str):
        return _ADDRESS.sub("(address)", _PATH.sub("(path)", value))
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def _plain(text: str) -> str:
    """At most 64 visible ASCII characters: a log line is one line, whatever a client sends."""
    return "".join(char if 32 < ord(char) < 127 else "?" for char in text[:_MAX_LOGGED])
