# ruff: noqa: E501 — one case a line
"""R23: the tools of a request are checked before a template or a grammar sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.text.tools import SCHEMA_BYTES, TOOL_LIMIT, Tool, ToolChoice, check_tool_choice, check_tools


def tool(parameters: object = None, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **function}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


P = "tools[0].function.parameters"
REFUSED = {
    "10^4 tools": ([tool()] * 10_000, "TOOLS_LIMIT", "tools"),
    "a name with spaces": ([tool(name="a b")], "BAD_TOOLS", "tools[0].function.name"),
    "a name that is too long": ([tool(name="a" * 65)], "BAD_TOOLS", "tools[0].function.name"),
    "no name": ([tool(name=None)], "BAD_TOOLS", "tools[0].function.name"),
    "a name with a mark": ([tool(name="<tool_call>")], "BAD_TOOLS", "tools[0].function.name"),
    "one name twice": ([tool(), tool()], "BAD_TOOLS", "tools[1].function.name"),
    "a text": ("tools", "BAD_TOOLS", "tools"),
    "no object": ([3], "BAD_TOOLS", "tools[0]"),
    "another type": ([{"type": "web_search"}], "BAD_TOOLS", "tools[0]"),
    "no function": ([{"type": "function"}], "BAD_TOOLS", "tools[0].function"),
    "parameters as a list": ([tool([])], "BAD_TOOLS", P),
    "parameters as a text": ([tool("{}")], "BAD_TOOLS", P),
    "parameters of a string": ([tool({"type": "string"})], "BAD_TOOLS", f"{P}.type"),
    "a description that is no text": ([tool(description=3)], "BAD_TOOLS", "tools[0].function.description"),
    "a long description": ([tool(description="x" * 10**6)], "TOOLS_LIMIT", "tools[0].function.description"),
    "half a surrogate pair": ([tool(description="\ud800")], "BAD_TOOLS", "tools[0].function"),
    "strict as a text": ([tool(strict="yes")], "BAD_TOOLS", "tools[0].function.strict"),
    "a large schema": ([tool({"description": "x" * SCHEMA_BYTES})], "TOOLS_LIMIT", P),
    "a deep schema": ([tool(deep(5_000))], "BAD_TOOLS", P),
    "no JSON": ([tool({"x": object()})], "BAD_TOOLS", P),
    "a pattern": ([tool({"properties": {"x": {"pattern": "("}}})], "BAD_SCHEMA", f"{P}#/properties/x/pattern"),
    "a nested pattern": ([tool({"items": {"pattern": "(" * 900}})], "BAD_SCHEMA", f"{P}#/items/pattern"),
    "a long pattern": ([tool({"items": {"pattern": "a" * 2000}})], "BAD_SCHEMA", f"{P}#/items/pattern"),
    "a pattern of names": ([tool({"patternProperties": {"[": {}}})], "BAD_SCHEMA", f"{P}#/patternProperties"),
    "a type": ([tool({"properties": {"a/b": {"type": "str"}}})], "BAD_SCHEMA", f"{P}#/properties/a~1b/type"),
    "no schema": ([tool({"properties": {"a": 3}})], "BAD_SCHEMA", f"{P}#/properties/a"),
    "properties as a list": ([tool({"properties": []})], "BAD_SCHEMA", f"{P}#/properties"),
    "an empty enum": ([tool({"properties": {"a": {"enum": []}}})], "BAD_SCHEMA", f"{P}#/properties/a/enum"),
    "required as a text": ([tool({"required": "a"})], "BAD_SCHEMA", f"{P}#/required"),
    "a length": ([tool({"anyOf": [{"maxLength": 2**40}]})], "BAD_SCHEMA", f"{P}#/anyOf/0/maxLength"),
    "itself": ([tool({"$ref": "#"})], "BAD_SCHEMA", P),
    "itself by a detour": (
        [tool({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}})], "BAD_SCHEMA", P,
    ),
    "a reference to nothing": ([tool({"items": {"$ref": "#/$defs/x"}})], "BAD_SCHEMA", f"{P}#/items/$ref"),
    "a reference to no schema": ([tool({"title": "x", "items": {"$ref": "#/title"}})], "BAD_SCHEMA", f"{P}#/items/$ref"),
    "a reference elsewhere": ([tool({"items": {"$ref": "https://x.example/y"}})], "BAD_SCHEMA", f"{P}#/items/$ref"),
    "a file": ([tool({"items": {"$ref": "file:///etc/passwd"}})], "BAD_SCHEMA", f"{P}#/items/$ref"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_r23_refused_with_the_place(case: str) -> None:
    tools, code, field = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        check_tools(tools)
    assert (caught.value.error_code, caught.value.field) == (code, field)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},  # a tree
        {"properties": {"a": {"$ref": "#/$defs/x%7Ey"}}, "$defs": {"x~y": True}},
        {"properties": {"a": {"$ref": "#/anyOf/0"}}, "anyOf": [{"type": ["string", "null"]}]},
        {"properties": {"a": {"pattern": r"^(?<year>\d{4})\k<year>\p{L}+[^]\u{1F600}\cA\/$"}}},
        {"properties": {"a": {"pattern": "[[a]&&[b]]"}}},
        {"$defs": {str(each): {"$ref": f"#/$defs/{each + 1}"} for each in range(500)} | {"500": {}}},
    ],
)
def test_what_schemas_may_be(parameters: object) -> None:
    (checked,) = check_tools([tool(parameters, description="does it", strict=True)])
    assert checked.parameters == ({"type": "object", "properties": {}} if parameters is None else parameters)
    assert checked.strict
    shown = json.loads(json.dumps(checked.shown()))
    assert shown["function"] == {"name": "f", "description": "does it", "parameters": shown["function"]["parameters"]}


def test_as_many_as_may_be() -> None:
    assert len(check_tools([tool(name=f"f{number}") for number in range(TOOL_LIMIT)])) == TOOL_LIMIT
    assert check_tools(None) == ()


TWO = (Tool("f"), Tool("g"))


@pytest.mark.parametrize(
    ("choice", "tools", "found"),
    [
        (None, TWO, ToolChoice("auto")),
        (None, (), ToolChoice("none")),
        ("auto", (), ToolChoice("none")),
        ("none", TWO, ToolChoice("none")),
        ("required", TWO, ToolChoice("required")),
        ({"type": "function", "function": {"name": "g"}}, TWO, ToolChoice("required", "g")),
        ({"type": "function", "name": "g"}, TWO, ToolChoice("required", "g")),
    ],
)
def test_choices(choice: object, tools: tuple[Tool, ...], found: ToolChoice) -> None:
    assert check_tool_choice(choice, tools) == found


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ("required", ()),
        ("any", TWO),
        (3, TWO),
        ({}, TWO),
        ({"type": "function", "function": {"name": "h"}}, TWO),
        ({"type": "function", "function": "f"}, TWO),
        ({"type": "allowed_tools", "tools": []}, TWO),
    ],
)
def test_what_is_no_choice(choice: object, tools: tuple[Tool, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        check_tool_choice(choice, tools)
    assert (caught.value.error_code, caught.value.field) == ("BAD_TOOL_CHOICE", "tool_choice")
