"""G rows: forms of answers that are wrong, or cost more than an answer may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .row import CHAT, FINE, Row, chat, encoded, refused, text

SECONDS = 3.0
"""The deadline of the grammar process, and one more."""
LIMIT = (400, "GRAMMAR_LIMIT")
SCHEMAS: list[dict[str, Any]] = [
    {"type": "wizard"}, {"type": 7}, {"type": []}, {"type": ["string", 7]}, {"type": None},
    {"$ref": "#/nowhere"}, {"$ref": "http://evil.example/schema"}, {"$ref": "file:///etc/passwd"}, {"$ref": 7},
    {"$ref": "#/$defs/x", "$defs": {}}, {"properties": []}, {"properties": {"a": 7}}, {"items": 7}, {"required": "a"},
    {"required": [7]}, {"enum": []}, {"enum": "a"}, {"minItems": -1}, {"minItems": "1"}, {"maxLength": 1.5},
    {"pattern": "("}, {"pattern": 7}, {"pattern": "(?=a)b"}, {"pattern": "(a)\\1"}, {"patternProperties": {"(": {}}},
    {"anyOf": []}, {"anyOf": {}}, {"oneOf": [7]}, {"allOf": "x"}, {"not": {}}, {"if": {}}, {"contains": {}},
    {"uniqueItems": True}, {"minimun": 5}, {"multipleOf": 0}, {"multipleOf": -1}, {"additionalProperties": 7},
    {"type": "integer", "minimum": 5, "maximum": 4}, {"unevaluatedProperties": False},
    {"$dynamicRef": "#x"}, {"dependentRequired": {}}, {"minimum": "1"}, {"$id": 7}, {"format": 7},
    {"type": "object", "minProperties": 5}, {"x-guidance": {}},
]  # fmt: skip
REGEXES = ["(", "[", "a{2,1}", "*", "(?=a)b", "(?!a)b", "(?<=a)b", "(a)\\1", "(?P<x>a)(?P=x)", "\\",
           "\\p{Nothing}", "[z-a]", "(?#", "\\k<x>"]  # fmt: skip
GRAMMARS = ["start: missing", "x: x", "start: (", "not a grammar", "start: /(/", "start: %json {", "start: start",
            "start: %json {\"type\": 7}", "%ignore /x/", "start: <nothing>", "start: \"a\" [", "}{"]  # fmt: skip
COSTLY_REGEXES = ["(a{1,1000}){1,1000}", ".*a.{25}", "(.*a){40}", "((a{0,100}){0,100}){0,100}", "(a|aa)*" * 500,
                  "(" * 30_000 + "a" + ")" * 30_000, "(" * 5_000 + "a" + ")" * 5_000, "(x+x+)+y" * 200,
                  ".{1,60000}", "[^a]{0,9999}{0,9999}"]  # fmt: skip
COSTLY_GRAMMARS = ["start: " + "(" * 5_000 + '"a"' + ")" * 5_000, 'start: start "a" | "b"', "start: x\nx: x",
                   "start: a\n" + "\n".join(f"a{n}: a{n + 1} a{n + 1}" for n in range(60)) + '\na60: "x"\na: a0',
                   "start: " + " ".join(["/.*a.{20}/"] * 40), "start: x*\nx: y*\ny: z*\nz: "]  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    """An array in an array, and so on."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


COSTLY_SCHEMAS: list[dict[str, Any]] = [
    {"enum": [f"a{number}" for number in range(100_000)]}, {"type": "array", "minItems": 10**9},
    {"type": "string", "minLength": 10**9}, {"type": "object", "minProperties": 10**9}, {"type": "array",
    "minItems": 99_999},
    {"type": "string", "minLength": 99_999}, nested(60), {"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, {"type": "string", "pattern": ".*a.{25}"},
    {"properties": {f"p{number}": {"type": "string"} for number in range(1_500)}, "type": "object"},
    {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(14)], "type": "object"},
]  # fmt: skip


def rows() -> Iterator[Row]:
    yield from _bad()
    yield from _costly()
    yield from _shapes()


def json_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _bad() -> Iterator[Row]:
    for schema in SCHEMAS:
        yield _row("G01", chat(**json_format(schema)), (400, "BAD_SCHEMA"))
        yield _row("G01", text(structured_outputs={"json": schema}), (400, "BAD_SCHEMA"))
    for schema in ([], "x", 7, None):
        yield refused("G01", chat(**json_format(schema)), path=CHAT)
    for given in ("[]", "{", "null", '{"a": 1, "a": 2}', "x"):
        yield _row("G01", text(guided_json=given), (400, "BAD_SCHEMA"))
    for regex in REGEXES:
        yield _row("G02", text(guided_regex=regex), (400, "BAD_REGEX"))
        yield _row("G02", chat(response_format={"type": "regex", "regex": regex}), (400, "BAD_REGEX"))
        strict = {
            "name": "f",
            "strict": True,
            "parameters": {"properties": {"a": {"type": "string", "pattern": regex}}},
        }
        tool = {"type": "function", "function": strict}
        yield refused(
            "G03", chat(tools=[tool], tool_choice="required"), "BAD_SCHEMA",
            "tools[0].function.parameters#/properties/a/pattern", path=CHAT, seconds=SECONDS,
        )  # fmt: skip
    for grammar in GRAMMARS:
        yield _row("G10", text(guided_grammar=grammar), (400, "BAD_GRAMMAR"))
        yield _row("G10", chat(response_format={"type": "grammar", "grammar": grammar}), (400, "BAD_GRAMMAR"))


def _costly() -> Iterator[Row]:
    for regex in COSTLY_REGEXES:
        yield _row("G04", text(guided_regex=regex), LIMIT, (400, "BAD_REGEX"), FINE)
    for grammar in COSTLY_GRAMMARS:
        yield _row("G06", text(guided_grammar=grammar), LIMIT, (400, "BAD_GRAMMAR"), FINE)
    for schema in COSTLY_SCHEMAS:
        yield _row("G07", text(structured_outputs={"json": schema}), LIMIT, (400, "BAD_SCHEMA"), FINE)
    yield _row("G07", text(guided_choice=["x"] * 1001), (400, "BAD_REQUEST"))
    yield _row("G07", text(guided_choice=["x" * 2**17]), LIMIT)
    yield _row("G07", text(guided_regex="x" * 2**17), LIMIT)


def _shapes() -> Iterator[Row]:
    """No form, two forms, forms of the wrong kind."""
    bad = (400, "BAD_REQUEST")
    for given in ({}, {"json": {}, "regex": "a"}, {"regex": 7}, {"choice": []}, {"choice": "x"}, {"choice": [7]},
                  {"json_object": 1}, {"grammar": ""}, {"regex": ""}, {"what": 1}, 7, "x", []):  # fmt: skip
        yield _row("G01", text(structured_outputs=given), bad)
    yield _row("G01", text(guided_regex="a", guided_choice=["a"]), bad)
    yield _row("G01", chat(response_format={"type": "json_object"}, guided_regex="a"), bad)
    for format_ in ({"type": "xml"}, {}, {"type": "json_schema"}, {"type": "regex"}, 7, "json", [],
                    {"type": "json_schema", "json_schema": {"name": "", "schema": {}}}):  # fmt: skip
        yield _row("G01", chat(response_format=format_), bad)


def _row(id_: str, body: dict[str, Any], *outcomes: tuple[int, str | None]) -> Row:
    path = CHAT if "messages" in body else "/v1/completions"
    return Row(id=id_, path=path, body=encoded(body), outcomes=outcomes, seconds=SECONDS)
