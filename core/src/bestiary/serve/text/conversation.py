"""A conversation as OpenAI's clients send it, checked and brought into the form that chat templates read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from bestiary.api.errors import RequestError

from .json_marks import count_marks
from .messages import part_text, plain

MESSAGE_LIMIT = 10_000
CALL_LIMIT = 128
"""Of one message."""
ARGUMENT_LIMIT = 100_000
"""Names and values in the arguments of all calls of a conversation."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_ID_CHARS = 256
_CALL = '{"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}'


@dataclass(slots=True)
class _Calls:
    """The calls of a conversation so far: their ids, and how much more their arguments may hold."""

    ids: set[str] = field(default_factory=set)
    room: int = ARGUMENT_LIMIT

    def take(self, arguments: str, where: str) -> None:
        """Raises RequestError where there is no room for what this JSON text holds."""
        marks = count_marks(arguments.encode(errors="replace"))
        self.room -= marks.nodes + marks.values
        if self.room < 0:
            _refuse("the calls' arguments hold too much", where, None, f"{ARGUMENT_LIMIT} names and values altogether")


def check_conversation(
    messages: object, *, arguments: Literal["object", "text"] = "object", developer: bool = False
) -> list[dict[str, Any]]:
    """A copy of `messages` for a chat template.

    Args:
        arguments: how the template takes the arguments of earlier calls: as an object, or as JSON text.
        developer: the template knows the role "developer"; otherwise it is "system" there.

    Raises:
        RequestError: BAD_MESSAGES names the message; UNSUPPORTED_INPUT the part that is no text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        _refuse("messages are a list", "messages", messages)
    if not 0 < len(messages) <= MESSAGE_LIMIT:
        _refuse(f"{len(messages)} messages", "messages", len(messages), f"1 to {MESSAGE_LIMIT}")
    called = _Calls()
    checked = []
    for number, message in enumerate(messages):
        copy = _message(message, f"messages[{number}]", called)
        if copy["role"] == "developer" and not developer:
            copy["role"] = "system"
        if "tool_calls" in copy:
            copy["tool_calls"] = [_as_template_takes(call, arguments) for call in copy["tool_calls"]]
        checked.append(copy)
    return checked


def _message(message: object, where: str, called: _Calls) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        _refuse("a message is an object with a role", where, message)
    role = message.get("role")
    if role not in _ROLES:
        fix = "tools and tool_calls took the place of functions" if role == "function" else None
        _refuse("not a role", f"{where}.role", role, f"one of {', '.join(_ROLES)}", fix)
    name = message.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        _refuse("not a name", f"{where}.name", name, "1 to 64 characters without spaces and < | \\ / >")
    copy: dict[str, Any] = {str(name): plain(value, where) for name, value in message.items()}
    calls = _calls(message.get("tool_calls"), where, role, called)
    copy.pop("tool_calls", None)
    if calls:
        copy["tool_calls"] = calls
    if role == "tool":
        _check_answered(message.get("tool_call_id"), f"{where}.tool_call_id", called)
    copy["content"] = _content(message.get("content"), where, optional=bool(calls))
    return copy


def _content(content: object, where: str, *, optional: bool) -> object:
    if content is None and optional:
        return None
    if isinstance(content, list | tuple) and content:
        return [
            {"type": "text", "text": part_text(part, f"{where}.content[{number}]")}
            for number, part in enumerate(content)
        ]
    if not isinstance(content, str):
        _refuse("a message's content is a text or a list of text parts", f"{where}.content", content)
    return content


def _calls(calls: object, where: str, role: object, called: _Calls) -> list[dict[str, Any]]:
    where = f"{where}.tool_calls"
    if calls is None or (calls == [] and role == "assistant"):
        return []
    if role != "assistant" or not isinstance(calls, list | tuple) or len(calls) > CALL_LIMIT:
        _refuse("an assistant's message has a list of tool calls", where, calls, f"at most {CALL_LIMIT} calls")
    return [_call(call, f"{where}[{number}]", called) for number, call in enumerate(calls)]


def _call(call: object, where: str, called: _Calls) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        _refuse("a tool call is a function's", where, call, fix=_CALL)
    if call.get("type", "function") != "function":
        _refuse("a tool call is a function's", f"{where}.type", call.get("type"), '"function"')
    call_id, function = call.get("id"), call["function"]
    if not isinstance(call_id, str) or not 0 < len(call_id) <= _ID_CHARS:
        _refuse("a tool call has an id", f"{where}.id", call_id, f"1 to {_ID_CHARS} characters", _CALL)
    called.ids.add(call_id)
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _ID_CHARS:
        _refuse("a function has a name", f"{where}.function.name", name, fix=_CALL)
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments", called)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(text: object, where: str, called: _Calls) -> object:
    """The object that the arguments are, whose JSON text a caller sends; an empty text is an empty object."""
    if text is None or text == "":
        return {}
    if isinstance(text, str):
        called.take(text, where)
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            value = None
    else:
        value = text
    if not isinstance(value, Mapping):
        _refuse("arguments are the JSON text of an object", where, text)
    return plain(value, where)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _as_template_takes(call: dict[str, Any], arguments: str) -> dict[str, Any]:
    if arguments == "object":
        return call
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _check_answered(call_id: object, where: str, called: _Calls) -> None:
    if not isinstance(call_id, str) or len(call_id) > _ID_CHARS:
        _refuse("a tool's message says which call it answers", where, call_id)
    if call_id not in called.ids:
        _refuse("no earlier message has this tool call", where, call_id, "the id of one of an assistant's tool_calls")


def _refuse(message: str, where: str, value: object, limit: object = None, fix: str | None = None) -> NoReturn:
    raise RequestError(message, code="BAD_MESSAGES", field=where, value=value, limit=limit, fix=fix)
