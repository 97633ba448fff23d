"""Who may call: keys, hosts and origins, decided before anything of a request is looked at.

The order: an answer's id, a web page's preflight, the key (a wrong one learns nothing else), the host (against DNS
rebinding), the origin (against other web pages). Everything is off that a flag has not switched on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import BestiaryError, RequestError

from .errors import refusal
from .options import ServeOptions

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ID_KEY, TENANT_KEY = "bestiary.request_id", "bestiary.tenant"
_CLEAN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_VERSIONS = ("1.0", "1.1")
_WILDCARDS = ("0.0.0.0", "::", "")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_PREFLIGHT = {
    b"access-control-allow-methods": b"GET, POST",
    b"access-control-allow-headers": b"authorization, content-type, x-request-id",
    b"access-control-max-age": b"600",
}


class Gate:
    """ASGI middleware: lets a request through with an id and a tenant in its scope, or answers it.

    Args:
        open_paths: need no key.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = KeyRing(options.api_keys)
        self._hosts = Hosts(options)
        self._origins = frozenset(options.cors_origins)
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        request_id = scope[ID_KEY] = _request_id(headers)
        origin = _one(headers, b"origin")
        allowed = origin is not None and ("*" in self._origins or origin in self._origins)
        extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if origin is not None and allowed:
            extra += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
            extra += [(b"access-control-expose-headers", b"x-request-id, warning, retry-after")]
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _no_content([*extra, *_PREFLIGHT.items()], send)
                return
        try:
            scope[TENANT_KEY] = None if scope["path"] in self._open else self._keys.tenant(headers)
            _check_version(scope["http_version"])
            self._hosts.check(headers)
            if origin is not None and not allowed:
                _check_same_origin(origin, headers)
        except BestiaryError as error:
            answer: Any = refusal(error, request_id, method=scope["method"], path=scope["path"])
            if error.error_code == "BAD_HTTP":
                extra.append((b"connection", b"close"))
        else:
            answer = self._app
        await answer(scope, receive, _adding(extra, send))


class KeyRing:
    """The keys, as digests of equal length, so that comparing them takes the same time whatever was sent."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def tenant(self, headers: Mapping[bytes, list[bytes]]) -> str | None:
        """Whose key it is, in hexadecimal digits; None where no keys are asked for. Raises `INVALID_API_KEY`."""
        if not self._digests:
            return None
        given = headers.get(b"authorization", [])
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise RequestError(
                "the API key is missing or wrong", code="INVALID_API_KEY", field="authorization",
                fix="send the header Authorization: Bearer KEY",
            )  # fmt: skip
        return digest.hex()


class Hosts:
    """The names under which this server may be addressed.

    By default those of this machine's loopback and the one it is bound to. Bound to every address, it also answers to
    addresses written as numbers: a name is what rebinding needs.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._all = "*" in options.allowed_hosts
        self._numbers = options.host in _WILDCARDS
        bound = f"[{options.host}]" if ":" in options.host else options.host
        self._names = frozenset(name.lower() for name in (*_LOOPBACK, bound, *options.allowed_hosts))

    def check(self, headers: Mapping[bytes, list[bytes]]) -> None:
        """Raises `HOST_NOT_ALLOWED`."""
        given = _one(headers, b"host") or ""
        match = _HOST.fullmatch(given.lower())
        if match is None or not (
            self._all or match[1] in self._names or (self._numbers and _is_number(match[1].strip("[]")))
        ):
            raise RequestError(
                "this host name is not served here", code="HOST_NOT_ALLOWED", field="host", value=given,
                fix="start with --allowed-host NAME",
            )  # fmt: skip


def _check_version(version: str) -> None:
    if version not in _VERSIONS:
        raise RequestError(
            "this version of HTTP is not spoken here", code="BAD_HTTP", field="version", value=version,
            limit=" or ".join(_VERSIONS),
        )  # fmt: skip


def _check_same_origin(origin: str, headers: Mapping[bytes, list[bytes]]) -> None:
    _, separator, authority = origin.partition("://")
    if not separator or authority.lower() != (_one(headers, b"host") or "").lower():
        raise RequestError(
            "web pages of this origin may not call", code="ORIGIN_NOT_ALLOWED", field="origin", value=origin,
            fix="start with --cors-origin ORIGIN",
        )  # fmt: skip


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value)
    return found


def _one(headers: Mapping[bytes, list[bytes]], name: bytes) -> str | None:
    """A header's value; one that stands there twice is as good as a wrong one."""
    values = headers.get(name)
    return None if values is None else b", ".join(values).decode("latin-1")


def _request_id(headers: Mapping[bytes, list[bytes]]) -> str:
    """The client's own id where it is short and clean, otherwise a new one."""
    given = _one(headers, b"x-request-id") or ""
    return given if _CLEAN_ID.fullmatch(given) else uuid.uuid4().hex


def _adding(extra: list[tuple[bytes, bytes]], send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = message.get("headers", [])
            names = {name for name, _ in own}
            message["headers"] = [*own, *((name, value) for name, value in extra if name not in names)]
        await send(message)

    return sending


async def _no_content(headers: list[tuple[bytes, bytes]], send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
