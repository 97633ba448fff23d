"""What of JSON Schema can be enforced token by token, checked with the place of every mistake.

A keyword that restricts values and cannot be enforced is refused, under whatever draft, and so is one that is all but
such a keyword (``minimun``): to ignore it would accept what its author meant to exclude. Other unknown keywords are
annotations, as the standard has it. Patterns, formats and contradictions are the grammar compiler's business.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from bestiary.api.errors import RequestError, shorten
from bestiary.engine.loader.config_json import parse_json_object

FIELD = "structured_outputs.json"
_AT = "at "
MOST_DEMANDED = 100_000
"""The largest `minItems`, `minLength` and `minProperties`: no answer holds more."""

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
UNENFORCEABLE = frozenset({
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef", "x-guidance",
})  # fmt: skip


class Rule(NamedTuple):
    """What the value of a keyword must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_type(value: Any) -> bool:
    return (
        value in TYPES if isinstance(value, str) else isinstance(value, list) and all(each in TYPES for each in value)
    )


_SCHEMA = Rule("a schema: an object, true or false", _is_schema)
_LIST = Rule("a list of schemas, not empty", lambda v: isinstance(v, list) and bool(v) and all(map(_is_schema, v)))
_ITEMS = Rule("a schema, or a list of them", lambda v: _is_schema(v) or _LIST.holds(v))
_NAMED = Rule("an object of schemas", lambda v: isinstance(v, dict) and all(map(_is_schema, v.values())))
_COUNT = Rule("a whole number from 0", lambda v: _is_number(v) and v == int(v) and v >= 0)
_NUMBER = Rule("a number", _is_number)
_BOUND = Rule("a number", lambda v: _is_number(v) or isinstance(v, bool))  # true and false in draft 4
_TEXT = Rule("a text", lambda v: isinstance(v, str))
_TEXTS = Rule("a list of texts", lambda v: isinstance(v, list) and all(isinstance(each, str) for each in v))
_RULES = {
    "type": Rule(f"one of {', '.join(TYPES)}, or a list of them", _is_type),
    "enum": Rule("a list, not empty", lambda v: isinstance(v, list) and bool(v)),
    "required": _TEXTS,
    "multipleOf": Rule("a number above 0", lambda v: _is_number(v) and v > 0),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _LIST),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _NAMED),
    **dict.fromkeys(("additionalProperties", "additionalItems"), _SCHEMA),
    "items": _ITEMS,
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _BOUND),
    **dict.fromkeys(("pattern", "format", "$ref", "$id", "$anchor", "$schema"), _TEXT),
}
_ASSERTIONS = sorted({*_RULES, *UNENFORCEABLE, "const"} - {"$defs", "definitions", "$id", "$anchor", "$schema"})
_ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "const", "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "$dynamicAnchor",
    "$recursiveAnchor", "$vocabulary", "id",
})  # fmt: skip


class Schema(NamedTuple):
    """A schema that passed, and where its regular expressions stand."""

    root: dict[str, Any]
    patterns: dict[str, str]


def check_schema(text: str) -> Schema:
    """Raises `RequestError` (BAD_SCHEMA, GRAMMAR_LIMIT) naming the first place that is wrong, as a JSON pointer."""
    try:
        root = parse_json_object(text.encode(), name="the schema", error=RequestError)
    except RequestError as error:
        raise RequestError(
            f"the schema: {error.message}", code="BAD_SCHEMA", field=FIELD, limit=error.limit, value=error.value,
            details=[str(error.field)],
        ) from None  # fmt: skip
    places = list(_subschemas("", root))
    names = {each[key] for _, each in places for key in ("$id", "$anchor") if key in each}
    patterns: dict[str, str] = {}
    for pointer, schema in places:
        for keyword, value in schema.items():
            _check_keyword(f"{pointer}/{_escaped(keyword)}", keyword, value)
        _check_least(pointer, schema)
        if isinstance(reference := schema.get("$ref"), str):
            _check_reference(f"{pointer}/$ref", reference, root, names)
        if "pattern" in schema:
            patterns[f"{pointer}/pattern"] = schema["pattern"]
        for pattern in schema.get("patternProperties", ()):
            patterns[f"{pointer}/patternProperties/{_escaped(pattern)}"] = pattern
    return Schema(root, patterns)


def wrong(
    pointer: str, what: str, *, value: object = None, limit: str | None = None, fix: str | None = None
) -> RequestError:
    """The error for a mistake at `pointer`."""
    where = pointer or "the top"
    return RequestError(
        f"{what}, at {shorten(where)}", code="BAD_SCHEMA", field=FIELD, value=value, limit=limit,
        details=[f"{_AT}{where[:200]}"], fix=fix,
    )  # fmt: skip


def pointer_of(error: RequestError) -> str | None:
    """Where in the schema the mistake is that such an error tells of; None where it does not say."""
    place = next((each for each in error.details if each.startswith(f"{_AT}/")), None)
    return None if place is None else place.removeprefix(_AT)


def _subschemas(pointer: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that is an object, and its place; what is malformed has none within."""
    stack: list[tuple[str, Any]] = [(pointer, schema)]
    while stack:
        place, found = stack.pop()
        if not isinstance(found, dict):
            continue
        yield place, found
        for keyword, value in reversed(found.items()):
            below = f"{place}/{_escaped(keyword)}"
            rule = _RULES.get(keyword)
            if rule is _NAMED and isinstance(value, dict):
                stack += [(f"{below}/{_escaped(name)}", each) for name, each in reversed(value.items())]
            elif rule in (_LIST, _ITEMS) and isinstance(value, list):
                stack += [(f"{below}/{index}", value[index]) for index in reversed(range(len(value)))]
            elif rule in (_SCHEMA, _ITEMS):
                stack.append((below, value))


def _check_keyword(pointer: str, keyword: str, value: object) -> None:
    if keyword in UNENFORCEABLE:
        raise wrong(
            pointer, f"{keyword} cannot be enforced while an answer is written", limit="other keywords",
            fix="leave it out, and check the finished answer for it",
        )  # fmt: skip
    rule = _RULES.get(keyword)
    if rule is None:
        near = [] if keyword in _ANNOTATIONS else difflib.get_close_matches(keyword, _ASSERTIONS, n=1, cutoff=0.85)
        if near:
            raise wrong(pointer, f"{shorten(keyword)} is no keyword", fix=f"did you mean {near[0]}?")
    elif not rule.holds(value):
        raise wrong(pointer, f"{keyword} must be {rule.words}", value=json.dumps(value)[:64], limit=rule.words)


def _check_least(pointer: str, schema: dict[str, Any]) -> None:
    """Refuse what no answer can hold, and a number of keys that cannot be counted: of those that are not named, the
    same may come twice."""
    for keyword in ("minItems", "minLength", "minProperties"):
        if schema.get(keyword, 0) > MOST_DEMANDED:
            raise RequestError(
                f"no answer is as long as {keyword} asks for, at {shorten(pointer or 'the top')}",
                code="GRAMMAR_LIMIT", field=FIELD, value=schema[keyword], limit=f"at most {MOST_DEMANDED}",
            )  # fmt: skip
    countable = len(set(schema.get("required", ()))) + 1
    if schema.get("minProperties", 0) > countable:
        raise wrong(
            f"{pointer}/minProperties", "so many keys cannot be told apart while an answer is written",
            value=schema["minProperties"], limit=f"at most {countable}: those in required, and one",
        )  # fmt: skip


def _check_reference(pointer: str, reference: str, root: dict[str, Any], names: set[str]) -> None:
    base, _, fragment = reference.partition("#")
    if base or (fragment and not fragment.startswith("/")):
        if base not in names and fragment not in names:
            raise wrong(
                pointer, "$ref leads out of the schema", value=reference, limit="#/…, or an $id or $anchor in it",
                fix="put what it refers to under $defs",
            )  # fmt: skip
        return
    found: Any = root
    for part in unquote(fragment).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and name.isascii() and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise wrong(pointer, "$ref leads nowhere", value=reference, limit="a place in this schema")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
