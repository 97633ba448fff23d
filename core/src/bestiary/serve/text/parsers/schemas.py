"""What a tool's schema says of an argument whose value came as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from bestiary.serve.text.schema_check import resolve

from .literals import escaped

Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Names of the request's tools → the JSON Schemas of their arguments."""

_HOPS = 8
"""References that are followed for an argument's type."""
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "null": type(None), "integer": _NUMBER, "number": _NUMBER, "array": list, "object": dict,
}  # fmt: skip


def argument_types(schema: Mapping[str, Any] | None, key: str) -> frozenset[str]:
    """The JSON types that a tool's schema allows for an argument; empty: it does not say."""
    properties = (schema or {}).get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(declared, Mapping):
        return frozenset()
    for _ in range(_HOPS):
        if "$ref" in declared:
            declared = resolve(schema, declared["$ref"], key)
            if not isinstance(declared, Mapping):
                return frozenset()
    choices = [declared, *(each for word in ("anyOf", "oneOf") for each in _list(declared.get(word)))]
    return frozenset(name for each in choices if isinstance(each, Mapping) for name in _named_types(each))


def _named_types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type")
    if types is not None:
        return [each for each in (types if isinstance(types, list) else [types]) if isinstance(each, str)]
    values = [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    return ["string"] if values and all(isinstance(value, str) for value in values) else []


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def typed_text(text: str, types: frozenset[str]) -> str:
    """A value's text as JSON: itself where it is JSON of one of the types, or no type is said; otherwise a string."""
    word = _PYTHON_WORDS.get(text.strip(), text.strip())
    try:
        value = json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return f'"{escaped(text)}"'
    fits = not types or any(_is(value, name) for name in types - {"string"})
    return word if fits else f'"{escaped(text)}"'


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    return isinstance(value, _TYPES.get(name, object))


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
