"""Where an OpenAI-compatible server is, which models it has, and what it says when it refuses."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from bestiary.api.errors import RequestError, UsageError

MAX_BODY = 2**22
_CONNECT_SECONDS = 10.0


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
            return response.status, response.read(MAX_BODY)
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
