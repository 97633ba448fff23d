"""What of a tool's schema a grammar enforces: all of it for a strict tool, or an error; otherwise as much as can be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.engine.structured.json_schema import UNENFORCEABLE, check_schema, pointer_of

from .schema_check import changed, patterns
from .tools import Tool

_NOTES = frozenset(
    {"title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly"}
)
_FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]|\\[bB1-9]|\\k<")


def enforceable(tool: Tool) -> Mapping[str, Any]:
    """The schema without what only people read, and, of a tool that is not strict, without what cannot be enforced.

    Raises:
        RequestError: BAD_SCHEMA, with the place of a keyword of a strict tool that cannot be enforced.
    """
    if not tool.strict:
        return changed(tool.parameters, _loosened)  # type: ignore[no-any-return]
    try:
        check_schema(json.dumps(tool.parameters))
    except RequestError as error:
        place = f"{tool.where}#{pointer_of(error) or ''}"
        raise RequestError(
            f"{tool.name} is strict, and {error.message}", code=error.error_code, field=place, limit=error.limit,
            value=error.value, details=error.details, fix='correct it, or leave out "strict"',
        ) from None  # fmt: skip
    return changed(tool.parameters, _without_notes)  # type: ignore[no-any-return]


def enforced_patterns(tool: Tool) -> dict[str, str]:
    """The regular expressions that a grammar for this tool holds: place in the request → expression."""
    return {
        f"{tool.where}#{pointer}": pattern
        for pointer, pattern in patterns(tool.parameters).items()
        if tool.strict or not _LOOKS_AROUND.search(pattern)
    }


def _without_notes(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {keyword: value for keyword, value in schema.items() if keyword not in _NOTES}


def _loosened(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {keyword: value for keyword, value in schema.items() if _can_be_kept(keyword, value)}
    if "oneOf" in kept and "anyOf" not in kept:  # that no second alternative fits is nothing one can write towards
        kept["anyOf"] = kept.pop("oneOf")
    return kept


def _can_be_kept(keyword: str, value: Any) -> bool:
    match keyword:
        case "format":
            return value in _FORMATS
        case "pattern":
            return _LOOKS_AROUND.search(value) is None
        case "patternProperties":
            return not any(_LOOKS_AROUND.search(pattern) for pattern in value)
        case _:
            return keyword not in _NOTES and keyword not in UNENFORCEABLE
