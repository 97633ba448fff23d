"""A request's body: bytes to one JSON object, once, and strictly."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError
from bestiary.serve.text.json_marks import Marks, count_marks

from .body_budget import Share
from .options import ServeOptions

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_VALUES = 1_000_000
"""Most values of a body: token ids are many, and cheap."""
MAX_NODES = 60_000
"""Most names, objects and lists of a body. Checking that many takes 0.2 s, in which no other thread has a turn."""
_JSON_TYPE = re.compile(r'application/json\s*(?:;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)


async def read_body(request: Request, options: ServeOptions, share: Share) -> bytes:
    """The body's bytes, which `share` accounts for.

    Raises:
        RequestError: UNSUPPORTED_MEDIA_TYPE, TOO_LARGE, REQUEST_TIMEOUT, BODIES_LIMIT.
    """
    _check_headers(request, options)
    data = bytearray()
    try:
        async with asyncio.timeout(options.read_timeout):
            async for piece in request.stream():
                data += piece
                if len(data) > options.max_body:
                    raise _too_large(options.max_body)
                share.grow(len(data))
    except TimeoutError:
        limit = f"{options.read_timeout:g} s"
        raise RequestError("the body did not come", code="REQUEST_TIMEOUT", field="body", limit=limit) from None
    return bytes(data)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`: UTF-8 without a byte order mark, no name twice, no number that is not finite.

    Raises:
        RequestError: BAD_JSON, with the place; JSON_LIMIT.
    """
    from pydantic_core import from_json

    marks = count_marks(data)
    _check_size(marks)
    try:
        value = from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _bad("the body is no JSON object", value=type(value).__name__)
    if marks.names != _count_names(value):
        raise _bad("a name stands twice in one object")
    return value


def _check_size(marks: Marks) -> None:
    for found, most, what in (
        (marks.nodes, MAX_NODES, "names, objects and lists"),
        (marks.values, MAX_VALUES, "values"),
    ):
        if found > most:
            raise RequestError(
                f"too many {what}", code="JSON_LIMIT", field="body", value=found, limit=f"at most {most}"
            )


def _count_names(value: dict[str, Any]) -> int:
    """How many names all its objects have; raises for a number that a float cannot hold."""
    names, pending = 0, [value]
    while pending:
        each: Any = pending.pop()
        if isinstance(each, dict):
            names += len(each)
            each = each.values()
        for item in each:
            if isinstance(item, dict | list):
                pending.append(item)  # type: ignore[arg-type]
            elif isinstance(item, float) and not math.isfinite(item):
                raise _bad("a number is too large", limit="what a 64-bit float can hold")
    return names


def _check_headers(request: Request, options: ServeOptions) -> None:
    kind = request.headers.get("content-type", "")
    if _JSON_TYPE.fullmatch(kind) is None:
        raise _unsupported("content-type", kind, "application/json, in UTF-8")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise _unsupported("content-encoding", encoding, "none: the body is not compressed")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > options.max_body:
        raise _too_large(options.max_body)


def _unsupported(field: str, value: str, limit: str) -> RequestError:
    return RequestError(
        f"this {field} is refused", code="UNSUPPORTED_MEDIA_TYPE", field=field, value=value, limit=limit
    )


def _too_large(most: int) -> RequestError:
    return RequestError("the body is too large", code="TOO_LARGE", field="body", limit=f"at most {most} bytes")


def _bad(message: str, **facts: Any) -> RequestError:
    return RequestError(message, code="BAD_JSON", field="body", **facts)
