"""The tools of a request, checked: what may be called, and whether it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from bestiary.api.errors import RequestError

from .messages import plain
from .schema_check import check_schema

TOOL_LIMIT = 128
SCHEMA_BYTES = 64 * 2**10
"""Of one tool's schema, as JSON."""
DESCRIPTION_CHARS = 16 * 2**10

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAME_RULE = "1 to 64 letters, digits, _, - and ."
_EXAMPLE = '{"type": "function", "function": {"name": "…", "parameters": {"type": "object", "properties": {…}}}}'


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: the JSON Schema of its arguments, an object's.
        strict: the arguments must fulfil it.
        where: the schema's place in the request.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False
    where: str = field(default="tools", compare=False)

    def shown(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may, must or must not be called; with a `name`, that one must."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None


def check_tools(tools: object) -> tuple[Tool, ...]:
    """The tools of a request in OpenAI's form; None is none.

    Raises:
        RequestError: BAD_TOOLS names the tool; TOOLS_LIMIT for more than 128, or too much text; BAD_SCHEMA points into
            the schema.
    """
    if tools is None:
        return ()
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        _refuse("tools are a list", "tools", tools)
    if len(tools) > TOOL_LIMIT:
        raise RequestError("too many tools", code="TOOLS_LIMIT", field="tools", limit=TOOL_LIMIT, value=len(tools))
    checked = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools))
    names = [tool.name for tool in checked]
    for number, name in enumerate(names):
        if name in names[:number]:
            _refuse("two tools have one name", f"tools[{number}].function.name", name)
    return checked


def check_tool_choice(choice: object, tools: Sequence[Tool]) -> ToolChoice:
    """`tool_choice` in OpenAI's form; None is "auto" where there are tools.

    Raises:
        RequestError: BAD_TOOL_CHOICE.
    """
    named = _named(choice)
    if named is not None:
        if named not in {tool.name for tool in tools}:
            _refuse_choice("the tool chosen is none of the request's tools", named, ", ".join(t.name for t in tools))
        return ToolChoice("required", named)
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    if choice not in ("none", "auto", "required"):
        _refuse_choice("not a choice among tools", choice, '"none", "auto", "required", or a function by its name')
    if choice == "required" and not tools:
        _refuse_choice("there are no tools to call", choice, "needs tools")
    return ToolChoice(choice if tools else "none")


def _named(choice: object) -> str | None:
    """The function that a choice names, as chat completions (`function.name`) or responses (`name`) write it."""
    if not isinstance(choice, Mapping) or choice.get("type") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _tool(tool: object, where: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        _refuse("a tool is a function", where, tool, fix=_EXAMPLE)
    function = tool.get("function")
    where = f"{where}.function"
    if not isinstance(function, Mapping):
        _refuse("a tool is a function", where, function, fix=_EXAMPLE)
    name, description, strict = function.get("name"), function.get("description"), function.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse("no name for a function", f"{where}.name", name, limit=_NAME_RULE)
    if not isinstance(description, str | None):
        _refuse("a description is a text", f"{where}.description", description)
    if len(description or "") > DESCRIPTION_CHARS:
        raise RequestError(
            "a description is too long", code="TOOLS_LIMIT", field=f"{where}.description",
            limit=f"{DESCRIPTION_CHARS} characters", value=len(description or ""),
        )  # fmt: skip
    if not isinstance(strict, bool | None):
        _refuse("strict is true or false", f"{where}.strict", strict)
    place = f"{where}.parameters"
    parameters = _parameters(function.get("parameters"), place)
    return Tool(name, str(plain(description or "", where, code="BAD_TOOLS")), parameters, bool(strict), place)


def _parameters(schema: object, where: str) -> Mapping[str, Any]:
    if schema is None:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        _refuse("parameters are a JSON Schema of an object", where, schema)
    copy = plain(schema, where, code="BAD_TOOLS")
    size = len(json.dumps(copy, ensure_ascii=False).encode())
    if size > SCHEMA_BYTES:
        raise RequestError(
            "a schema is too large", code="TOOLS_LIMIT", field=where, limit=f"{SCHEMA_BYTES} bytes", value=size
        )
    check_schema(copy, where)
    if schema.get("type", "object") != "object":
        _refuse("arguments are an object", f"{where}.type", schema.get("type"), limit='"object"')
    return copy  # type: ignore[return-value]


def _refuse(message: str, where: str, value: object, *, limit: object = None, fix: str | None = None) -> NoReturn:
    raise RequestError(message, code="BAD_TOOLS", field=where, value=value, limit=limit, fix=fix)


def _refuse_choice(message: str, value: object, rule: str) -> NoReturn:
    raise RequestError(message, code="BAD_TOOL_CHOICE", field="tool_choice", value=value, limit=rule)
