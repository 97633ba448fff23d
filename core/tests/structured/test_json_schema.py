"""Mistakes in schemas are named with their place, and nothing that restricts is ignored."""

from __future__ import annotations

import json

import pytest

from bestiary.api.errors import RequestError
from bestiary.engine.structured.json_schema import check_schema

WRONG = [  # G01: a schema, and where it is wrong
    ({"type": "objekt"}, "/type"),
    ({"type": 5}, "/type"),
    ({"properties": {"a": {"type": ["string", "int"]}}}, "/properties/a/type"),
    ({"properties": 5}, "/properties"),
    ({"properties": {"a/b~c": {"minLength": -1}}}, "/properties/a~1b~0c/minLength"),
    ({"items": {"maxItems": 1.5}}, "/items/maxItems"),
    ({"items": [{}, {"pattern": 1}]}, "/items/1/pattern"),
    ({"anyOf": []}, "/anyOf"),
    ({"anyOf": [{}, {"allOf": {}}]}, "/anyOf/1/allOf"),
    ({"oneOf": [1]}, "/oneOf"),
    ({"required": "a"}, "/required"),
    ({"required": [1]}, "/required"),
    ({"enum": []}, "/enum"),
    ({"minimum": "1"}, "/minimum"),
    ({"multipleOf": 0}, "/multipleOf"),
    ({"multipleOf": -2}, "/multipleOf"),
    ({"additionalProperties": "no"}, "/additionalProperties"),
    ({"$defs": {"unused": {"type": "text"}}}, "/$defs/unused/type"),
    ({"$ref": "#/$defs/x"}, "/$ref"),
    ({"$ref": "#/$defs/x/1", "$defs": {"x": [1]}}, "/$defs"),
    ({"items": {"$ref": "#/properties/a"}, "properties": {"b": {}}}, "/items/$ref"),
    ({"$ref": "http://example.com/schema"}, "/$ref"),
    ({"$ref": "other.json#/a"}, "/$ref"),
    ({"$ref": "#name"}, "/$ref"),
    ({"$ref": 1}, "/$ref"),
    ({"minimun": 1}, "/minimun"),
    ({"type": "object", "additionalProperty": False}, "/additionalProperty"),
    ({"type": "object", "minProperties": 2}, "/minProperties"),
    ({"type": "object", "required": ["a"], "minProperties": 3}, "/minProperties"),
]
UNENFORCEABLE = [
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef", "x-guidance",
]  # fmt: skip
RIGHT: list[dict[str, object]] = [
    {},
    {"type": "object", "properties": {"type": {"type": "string"}, "minimun": {}, "not": {}}, "required": ["not"]},
    {"title": "T", "description": "d", "default": 1, "examples": [1], "x-order": 1, "nullable": True, "unit": "m"},
    {"$ref": "#/definitions/a~1b", "definitions": {"a/b": True}},
    {"$ref": "#/items/0/properties/%61", "items": [{"properties": {"a": {}}}]},
    {"$ref": "#"},
    {"$ref": "#name", "$defs": {"x": {"$anchor": "name"}}},
    {"$ref": "other.json", "$defs": {"x": {"$id": "other.json"}}},
    {"minimum": 1, "exclusiveMinimum": True, "maxItems": 10**12, "minLength": 2.0},
    {"const": {"not": 1, "type": "objekt"}, "enum": [{"if": 1}]},
    {"type": "object", "required": ["a"], "minProperties": 2},
]


@pytest.mark.parametrize(("schema", "pointer"), WRONG)
def test_a_mistake_is_named_with_its_place(schema: object, pointer: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_schema(json.dumps(schema))
    assert caught.value.error_code == "BAD_SCHEMA"
    assert caught.value.details == (f"at {pointer}",)


@pytest.mark.parametrize("keyword", UNENFORCEABLE)
@pytest.mark.parametrize("draft", [None, "http://json-schema.org/draft-07/schema#"])
def test_a_keyword_that_cannot_be_enforced_is_refused_under_every_draft(keyword: str, draft: str | None) -> None:
    schema = {"items": {keyword: {}}} | ({} if draft is None else {"$schema": draft})
    with pytest.raises(RequestError, match="cannot be enforced") as caught:
        check_schema(json.dumps(schema))
    assert caught.value.details == (f"at /items/{keyword}",)


@pytest.mark.parametrize("schema", RIGHT)
def test_the_rest_passes(schema: dict[str, object]) -> None:
    assert check_schema(json.dumps(schema)).root == schema


@pytest.mark.parametrize("keyword", ["minItems", "minLength", "minProperties"])
def test_what_no_answer_can_hold_is_too_much(keyword: str) -> None:
    with pytest.raises(RequestError, match=keyword) as caught:
        check_schema(json.dumps({"properties": {"a": {keyword: 10**9}}}))
    assert caught.value.error_code == "GRAMMAR_LIMIT"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "true", '"x"', "{", '{"type": NaN}', '{"type": "string", "type": "number"}', '{"const": "\\ud800"}',
     "[" * 60_000, '{"items":' * 100 + "{}" + "}" * 100, '{"minimum": 1e999}'],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_schema(text)
    assert caught.value.error_code == "BAD_SCHEMA"


def test_patterns_are_collected_with_their_places() -> None:
    schema = {"properties": {"a": {"pattern": "x"}}, "patternProperties": {"^b/": {"items": {"pattern": "y"}}}}
    assert check_schema(json.dumps(schema)).patterns == {
        "/properties/a/pattern": "x",
        "/patternProperties/^b~1": "^b/",
        "/patternProperties/^b~1/items/pattern": "y",
    }
