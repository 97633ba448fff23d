"""JSON Schemas that callers send, checked where a mistake would otherwise show late: while an answer is being written.

Checked are the keywords that hold schemas, the form of the common others, patterns, and references. A reference points
into its own document (nothing is fetched), and following it leads somewhere: a schema may contain itself, as a tree
does, but not be itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NoReturn
from urllib.parse import unquote

from bestiary.api.errors import RequestError

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_SCHEMA = frozenset(
    {"items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_SAME_VALUE = frozenset({"anyOf", "oneOf", "allOf", "not", "if", "then", "else"})
"""Keywords whose schemas are about the very value that the schema around them is about."""

_PATTERN_CHARS = 1024
# What ECMAScript's patterns, which JSON Schema uses, have and Python's spell otherwise.
_ECMA = [
    (re.compile(r"\(\?<(?![=!])"), "(?P<"),
    (re.compile(r"\\k<(\w+)>"), r"(?P=\1)"),
    (re.compile(r"\\[pP]\{[\w=]{1,64}\}"), r"\\w"),
    (re.compile(r"\\u\{[0-9A-Fa-f]{1,6}\}|\\c[A-Za-z]"), r"\\x41"),
    (re.compile(r"\[\^\]"), r"[\\s\\S]"),
]


def check_schema(schema: Any, where: str) -> None:
    """Raises RequestError BAD_SCHEMA; `field` is `where` and a JSON pointer to the mistake."""
    graph: dict[int, list[int]] = {}
    for pointer, each in _walk(schema, "", where):
        if isinstance(each, Mapping):
            _check_keywords(each, f"{where}#{pointer}")
            graph[id(each)] = [id(same) for same in _same(schema, each, f"{where}#{pointer}")]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        _refuse("a schema refers to itself without end", where, None)


def _walk(schema: Any, pointer: str, where: str) -> Iterator[tuple[str, Any]]:
    """All schemas in a schema, itself first. No deeper than what was sent, which is bounded."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        _refuse("a schema is an object, true or false", f"{where}#{pointer}", schema)
    yield pointer, schema
    for keyword, value in schema.items():
        here = f"{pointer}/{_escaped(keyword)}"
        if keyword in _NAMED_SCHEMAS:
            _need(value, Mapping, "schemas by name", f"{where}#{here}")
            for name, each in value.items():
                yield from _walk(each, f"{here}/{_escaped(name)}", where)
        elif keyword in _SCHEMAS or (keyword == "items" and isinstance(value, list)):
            _need(value, list, "a list of schemas", f"{where}#{here}")
            for number, each in enumerate(value):
                yield from _walk(each, f"{here}/{number}", where)
        elif keyword in _SCHEMA:
            yield from _walk(value, here, where)


def patterns(schema: Any) -> dict[str, str]:
    """The regular expressions of a checked schema: JSON pointer → expression."""
    found: dict[str, str] = {}
    for pointer, each in _walk(schema, "", ""):
        if "pattern" in each:
            found[f"{pointer}/pattern"] = each["pattern"]
        for pattern in each.get("patternProperties", ()):
            found[f"{pointer}/patternProperties/{_escaped(pattern)}"] = pattern
    return found


def changed(schema: Any, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    """A copy of a checked schema: `change` gives the keywords of each schema in it, from the outside in."""
    if not isinstance(schema, Mapping):
        return schema
    copy = dict(change(schema))
    for keyword, value in copy.items():
        if keyword in _NAMED_SCHEMAS:
            copy[keyword] = {name: changed(each, change) for name, each in value.items()}
        elif keyword in _SCHEMAS or (keyword == "items" and isinstance(value, list)):
            copy[keyword] = [changed(each, change) for each in value]
        elif keyword in _SCHEMA:
            copy[keyword] = changed(value, change)
    return copy


def _same(root: Any, schema: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """The schemas that must be known to know this one."""
    for keyword in _SAME_VALUE & schema.keys():
        value = schema[keyword]
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Mapping))
    if "$ref" in schema:
        found = resolve(root, schema["$ref"], f"{where}/$ref")
        if isinstance(found, Mapping):
            yield found


def resolve(root: Any, reference: object, where: str) -> Any:
    """What a reference points to. Raises RequestError BAD_SCHEMA where that is nothing in this document."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        _refuse("a reference points into its own document", where, reference, '"#" or "#/…"')
    found = root
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdecimal() and len(name) < 6 and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            _refuse("a reference points to nothing", where, reference)
    if not isinstance(found, Mapping | bool):
        _refuse("a reference points to no schema", where, reference)
    return found


def _check_keywords(schema: Mapping[str, Any], where: str) -> None:
    for keyword in _CHECKS.keys() & schema.keys():
        rule, fits = _CHECKS[keyword]
        if not fits(schema[keyword]):
            _refuse(f"{keyword} is {rule}", f"{where}/{keyword}", schema[keyword], rule)
    for pattern in schema.get("patternProperties", ()):
        if not _is_pattern(pattern):
            _refuse("not a pattern", f"{where}/patternProperties", pattern)


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _PATTERN_CHARS:
        return False
    for spelling, python in _ECMA:
        value = spelling.sub(python, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's plans for what is a plain letter in ECMAScript
            re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_choices(value: object) -> bool:
    return isinstance(value, list) and bool(value)


_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "type": (f"one or several of {', '.join(_TYPES)}", _is_type),
    "pattern": (f"a regular expression of at most {_PATTERN_CHARS} characters", _is_pattern),
    "required": ("a list of names", _is_names),
    "enum": ("a list that is not empty", _is_choices),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        ("a count below 2^31", _is_count),
    ),
    **dict.fromkeys(("minimum", "maximum"), ("a number", _is_number)),
}


def _need(value: object, kind: type, what: str, where: str) -> None:
    if not isinstance(value, kind):
        _refuse(f"here stand {what}" if kind is Mapping else f"here stands {what}", where, value)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _refuse(message: str, where: str, value: object, limit: object = None) -> NoReturn:
    raise RequestError(message, code="BAD_SCHEMA", field=where, value=value, limit=limit)
