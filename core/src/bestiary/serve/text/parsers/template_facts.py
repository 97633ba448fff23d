"""What a chat template does with tools, found out by rendering a small conversation through it.

The prompt before an answer and the same conversation with an answer that calls tools have a beginning in common; what
comes behind it is how this template writes calls. A format that reads the very calls out of it is the model's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bestiary.api.errors import RequestError
from bestiary.api.text_formats import JsonCall, ToolFormat

from .answer import parse_text
from .tool_calls import ToolCallParser

Render = Callable[..., str]
"""Messages, and variables by name, to text; raises RequestError where the template refuses."""
Arguments = Literal["object", "text"]

_QUESTION = {"role": "user", "content": "What is it like in Bern, and in Rome?"}
_NAMES = ("get_weather_at", "find_town_of")
_ARGUMENTS: tuple[dict[str, Any], ...] = ({"town": "Bern", "days": 3}, {"town": "Rome", "days": 4})
_SCHEMA = {"type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer"}}}
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Looks it up.", "parameters": _SCHEMA}}
    for name in _NAMES
]
_SCHEMAS = dict.fromkeys(_NAMES, _SCHEMA)
_OBJECT = re.compile(
    r'\{\s*"(?P<name>\w+)":\s*"(?P<called>\w+)",\s*"(?P<arguments>\w+)":\s*\{[^{}]*\}(?:,\s*"\w+":\s*"[^"]*")?\s*\}'
)
_TEXT_LIMIT = 64 * 2**10
_FINISHED = re.compile(r"(?:.*[\s>\])}])?", re.DOTALL)
_COUNTERPARTS = (("<|", "<|/"), ("<", "</"), ("[", "[/"))


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What was found.

    Attributes:
        shows_tools: a prompt tells the model of the tools.
        arguments: how the template takes the arguments of earlier calls.
        written: how it writes calls, each with the number of calls; empty where it writes none.
    """

    shows_tools: bool
    arguments: Arguments
    written: tuple[tuple[str, int], ...]


def template_facts(render: Render, forms: Iterable[ToolFormat]) -> TemplateFacts:
    """Render, with `forms` to tell whether arguments come out as they should."""
    known = tuple(forms)
    shown = _rendered(render, [_QUESTION], tools=_TOOLS, add_generation_prompt=True)
    prompt = shown or _rendered(render, [_QUESTION], add_generation_prompt=True)
    written: dict[Arguments, tuple[tuple[str, int], ...]] = {}
    for arguments in ("object", "text"):
        texts = (
            (_behind(prompt, _rendered(render, _called(count, arguments), tools=_TOOLS)), count) for count in (2, 1)
        )
        written[arguments] = tuple((text, count) for text, count in texts if all(n in text for n in _NAMES[:count]))
        if any(reads(form, *each) for form in (*known, *derived(written[arguments])) for each in written[arguments]):
            return TemplateFacts(_NAMES[0] in shown, arguments, written[arguments])
    usual: Arguments = "object" if written["object"] or not written["text"] else "text"
    return TemplateFacts(_NAMES[0] in shown, usual, written[usual])


def reads(form: ToolFormat, text: str, count: int) -> bool:
    """Whether a format finds just the calls that were written."""
    return _found(form, text)[0] == list(zip(_NAMES[:count], _ARGUMENTS[:count], strict=True))


def left_over(form: ToolFormat, text: str) -> int:
    """Characters that a format takes for content; the model's own leaves the fewest."""
    return len(_found(form, text)[1])


def derived(written: Iterable[tuple[str, int]]) -> tuple[ToolFormat, ...]:
    """A format that nobody has told us of: JSON objects behind a mark, as the template writes them; none where it
    writes something else."""
    for text, _ in written:
        found = _OBJECT.search(text)
        if found is None or found["called"] != _NAMES[0]:
            continue
        before = text[: found.start()].strip()
        opening = before.removesuffix("[").strip()
        if not opening or len(opening) > 64 or " " in opening:
            continue
        form = ToolFormat(
            opening=(opening,),
            closing=_counterpart(opening, text[found.end() :]),
            brackets=opening != before,
            call=JsonCall(name=found["name"], arguments=(found["arguments"],)),
        )
        return (form,)
    return ()


def _found(form: ToolFormat, text: str) -> tuple[list[tuple[str | None, Any]], str]:
    delta = parse_text(ToolCallParser(form, _SCHEMAS), text)
    calls = []
    for call in delta.tool_calls:
        try:
            calls.append((call.name, json.loads(call.arguments)))
        except ValueError:
            calls.append((call.name, None))
    return calls, delta.content


def _counterpart(opening: str, behind: str) -> str:
    for begins, ends in _COUNTERPARTS:
        closing = opening.replace(begins, ends, 1)
        if opening.startswith(begins) and closing in behind:
            return closing
    return ""


def _called(count: int, arguments: Arguments) -> list[Mapping[str, Any]]:
    values = [value if arguments == "object" else json.dumps(value) for value in _ARGUMENTS]
    calls = [
        {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": value}}
        for number, (name, value) in enumerate(zip(_NAMES[:count], values, strict=False))
    ]
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": "It is fine."} for call in calls]
    return [_QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *answers]


def _rendered(render: Render, messages: list[Mapping[str, Any]], **variables: Any) -> str:
    """The text; empty where the template refuses, or writes so much that it cannot be about this conversation."""
    try:
        text = render(messages, **variables)
    except RequestError:
        return ""
    return text if len(text) <= _TEXT_LIMIT else ""


def _behind(prompt: str, text: str) -> str:
    """`text` without the beginning that it has in common with `prompt`, and which ends where a word or mark does."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    length = next((at for at, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    common = text[:length]
    return text[len(_FINISHED.match(common)[0]) :]  # type: ignore[index]
