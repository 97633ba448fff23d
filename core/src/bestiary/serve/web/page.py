"""The page at `/`: the files in `static/`, each at one fixed address.

All of them are read when the routes are made. A request never names a path on disk, so none can lead outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PREFIX = "/web/"
"""Everything but the page itself is below it. The page and what is below hold no secret, so they need no API key."""

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    [
        "default-src 'self'",
        "connect-src 'self'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # the browser itself refuses innerHTML and its kin
        "trusted-types 'none'",
    ]
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # keep it, and ask each time: the answer is mostly 304
}

Endpoint = Callable[[Request], Awaitable[Response]]


def routes() -> list[Route]:
    """One route a file: `index.html` at `/`, the others at `/web/NAME`. Each answers GET and HEAD."""
    return [Route(_address(name), _endpoint(content, TYPES[suffix])) for name, suffix, content in _static_files()]


def _static_files() -> Iterator[tuple[str, str, bytes]]:
    for file in sorted(files(__package__).joinpath("static").iterdir(), key=lambda file: file.name):
        yield file.name, PurePosixPath(file.name).suffix, file.read_bytes()


def _address(name: str) -> str:
    return "/" if name == "index.html" else PREFIX + name


def _endpoint(content: bytes, media_type: str) -> Endpoint:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}

    async def answer(request: Request) -> Response:
        if _known(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer


def _known(if_none_match: str, etag: str) -> bool:
    """Whether the client has this version (RFC 9110, 13.1.2: weak comparison)."""
    held = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in held or held == ["*"]
