"""Grammars that make an answer call tools: in the format of the model's family, with arguments as the schemas say.

The text is Lark as llguidance reads it. What a grammar lets pass, the family's parser reads as calls; both are made of
the same `ToolFormat`. A mark that is a special token of the vocabulary is asked for as that token.

A schema is fulfilled as far as `enforceable` says. JSON is written as `json.dumps` writes it, and an object whose
schema lists properties has no others unless it says so. Where a family writes strings plainly between tags, only
`enum` and `const` bind them; a tool that is `strict` may not ask for more there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.api.text_formats import JsonCall, NamedCall, PythonCall, ReasoningFormat, TaggedCall, ToolFormat

from .enforceable import enforceable
from .parsers.schemas import argument_types
from .tools import Tool

_TEXT = "/(?s:.*)/"
_BLANK = "/[ \\t\\r\\n]{0,4}/"
_WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_PYTHON_ESCAPES = {"json_allowed_escapes": '"\\bfnrtu'}  # where JSON and Python mean the same
_ANYTHING: Mapping[str, Any] = {"type": "object"}


def forced_calls(
    form: ToolFormat,
    tools: Sequence[Tool],
    *,
    several: bool = True,
    special: Mapping[str, int] | None = None,
    reasoning: ReasoningFormat | None = None,
    started: bool = False,
) -> str:
    """A grammar whose texts are one call, or one after another.

    Args:
        tools: those that may be called. several: more than one call may be made.
        special: special tokens of the vocabulary → ids.
        reasoning: may come before the calls; `started`: the prompt has opened it.

    Raises:
        RequestError: BAD_SCHEMA where this format cannot keep to a tool's schema.
    """
    rules = _Rules(special or {})
    thought = rules.thought(reasoning, started)
    if form.bare:
        form = replace(form, opening=(), closing="", layout="")
    anywhere = reasoning is not None and reasoning.anywhere
    bound = [_bound(tool) for tool in tools]
    calls = rules.calls(form, bound, several, form.opening if anywhere else form.opening[:1])
    return rules.grammar([*thought, *calls])


def free_calls(
    form: ToolFormat,
    tools: Sequence[Tool],
    *,
    special: Mapping[str, int] | None = None,
    reasoning: ReasoningFormat | None = None,
    started: bool = False,
) -> str | None:
    """A grammar that leaves a text free until it opens a call, which then is one of a tool's, and a strict one's as its
    schema says. None where no tool is strict, and where `can_free_calls` says that it cannot be done.

    Arguments and errors are those of `forced_calls`.
    """
    if not any(tool.strict for tool in tools) or not can_free_calls(form, reasoning):
        return None
    rules = _Rules(special or {})
    any_object = isinstance(form.call, JsonCall | NamedCall)
    loose = [
        Tool(tool.name, parameters=_ANYTHING) if any_object and not tool.strict else _bound(tool) for tool in tools
    ]
    thought = rules.thought(reasoning, started)
    begins = rules.name("head", rules.until_any(form.opening))
    rest = rules.calls(form, loose, several=form.separator is not None or form.brackets, openings=())
    call = rules.name("free", f"{begins} {' '.join(rest)}")
    return rules.grammar([*thought, f"{call}*", rules.name("tail", _TEXT)])


def can_free_calls(form: ToolFormat, reasoning: ReasoningFormat | None) -> bool:
    """Whether a call can be told from the text around it while it is written: it begins with a mark, and no other marks
    stand around the answer's parts."""
    return bool(form.opening) and not form.bare and not (reasoning is not None and reasoning.dropped)


class _Rules:
    """The rules of one grammar while it is written; a rule's name is what stands for it in others."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._names: dict[str, str] = {}

    def grammar(self, start: list[str]) -> str:
        rules = (f"{name}{rule}" for rule, name in self._names.items())
        return "\n".join(["%llguidance {}", f"start: {' '.join(start)}", *rules, ""])

    def name(self, kind: str, body: str, options: str = "") -> str:
        """A rule for `body`, the same for the same."""
        return self._names.setdefault(f"{options}: {body}", f"{kind}_{len(self._names)}")

    def text(self, *pieces: str) -> list[str]:
        """Fixed text, special tokens as such."""
        text, atoms, at = "".join(pieces), [], 0
        for found in self._tokens.finditer(text):
            atoms += [_quoted(text[at : found.start()]), f"<[{self._special[found[0]]}]>"]
            at = found.end()
        return [atom for atom in (*atoms, _quoted(text[at:])) if atom]

    def until(self, mark: str) -> str:
        """Any text up to `mark`, with it. The text does not hold the mark."""
        first, *rest = self.text(mark)
        if first.startswith("<["):
            return self.name("until", " ".join([_TEXT, first, *rest]))
        found = self.name("text", _TEXT, f"[suffix={first}]")
        return " ".join([found, *rest])

    def until_any(self, marks: Sequence[str]) -> str:
        return " | ".join(self.until(mark) for mark in marks)

    def json(self, schema: Mapping[str, Any], **options: Any) -> str:
        return self.name("json", f"%json {json.dumps({**schema, 'x-guidance': _WRITTEN | options})}")

    def thought(self, reasoning: ReasoningFormat | None, started: bool) -> list[str]:
        """Reasoning that may come first."""
        if reasoning is None:
            return []
        begun = started or reasoning.inside
        closed = self.name("thought", f"({self.until_any(reasoning.closing)}) {_BLANK}")
        if begun and not reasoning.anywhere:
            return [closed]
        openings = reasoning.opening if reasoning.anywhere else reasoning.opening[:1]
        opened = self.name("opened", " | ".join(" ".join(self.text(mark)) for mark in openings))
        whole = f"({opened} {closed}){'*' if reasoning.anywhere else '?'}"
        return [closed, whole] if begun else [whole]

    def calls(self, form: ToolFormat, tools: Sequence[Tool], several: bool, openings: Sequence[str]) -> list[str]:
        """Sections of calls, each behind one of `openings`; one section, where what opens it is there already."""
        call = self.name("call", " | ".join(" ".join(self._call(form, tool)) for tool in tools))
        separator = ", " if form.brackets else form.separator
        if several and separator is not None:
            call = self.name("calls", f"{call} ({' '.join([*self.text(separator), call])})*")
        listed = [*self.text("["), call, *self.text("]")] if form.brackets else [call]
        opening = " | ".join(" ".join(self.text(mark)) for mark in openings)
        opened = [self.name("opening", opening)] if openings else []
        layout = self.text(form.layout)  # a lexeme of its own: none may be the beginning of another
        body = [*opened, *layout, *listed, *layout, *self.text(form.closing)]
        section = self.name("section", " ".join(body))
        if not (several and openings and separator is None):
            return [section]
        return [section, f"({' '.join([*layout, section])})*"]

    def _call(self, form: ToolFormat, tool: Tool) -> list[str]:
        match form.call:
            case JsonCall(name=name, arguments=(arguments, *_)):
                lead = f'{{"{name}": {json.dumps(tool.name)}, "{arguments}": '
                return [*self.text(lead), self.json(_closed(tool.parameters)), *self.text("}")]
            case NamedCall() as shape:
                lead = f"{shape.opening}{tool.name}{shape.header or ''}{shape.between}"
                return [*self.text(lead), self.json(_closed(tool.parameters)), *self.text(shape.closing)]
            case TaggedCall() as shape:
                return self._tagged(shape, tool)
            case PythonCall():
                return [*self.text(tool.name, "("), *self._keywords(tool), *self.text(")")]
        raise TypeError(form.call)

    def _tagged(self, shape: TaggedCall, tool: Tool) -> list[str]:
        items = []
        for key, schema, needed in _properties(tool):
            lead = self.text(shape.key_opening, key, shape.key_closing, shape.padding)
            item = self.name("item", " ".join([*lead, *self._tagged_value(shape, tool, key, schema)]))
            items.append(item if needed else f"{item}?")
        return [*self.text(shape.opening, tool.name, shape.name_closing), *items, *self.text(shape.closing)]

    def _tagged_value(self, shape: TaggedCall, tool: Tool, key: str, schema: Mapping[str, Any]) -> list[str]:
        types, end = argument_types(tool.parameters, key), shape.value_closing
        if "string" not in types:
            return [self.json(_document(tool, schema)), *self.text(shape.padding, end)]
        mark = end.rstrip()
        if types == {"string"} and schema.keys() & {"enum", "const"}:
            words = _words(schema)
            if not words or any(mark in word for word in words):
                raise _unkeepable(tool, key, f"strings to choose from, without {mark}")
            return [f"({' | '.join(' '.join(self.text(word, shape.padding, end)) for word in words)})"]
        if tool.strict and (types != {"string"} or schema.keys() - {"type"}):
            raise _unkeepable(tool, key, "a string without further rules than enum or const")
        return [self.until(mark), *self.text(end[len(mark) :])]

    def _keywords(self, tool: Tool) -> list[str]:
        """Keyword arguments in the schema's order, those that are not required or not, with commas between them."""
        first = later = ""  # what may stand from here to the end, at first and behind another; empty: nothing
        for key, schema, needed in reversed(list(_properties(tool))):
            if not key.isidentifier():
                raise _unkeepable(tool, key, "an identifier, being a keyword in this model's calls")
            item = " ".join([*self.text(key, "="), self.json(_document(tool, schema), **_PYTHON_ESCAPES)])
            begun, after = f"{item} {later}", " ".join([*self.text(", "), item, later])
            first = self.name("first", begun if needed else f"{begun} | {first}" if first else f"({begun})?")
            later = self.name("later", after if needed else f"{after} | {later}" if later else f"({after})?")
        return [first] if first else []


def _bound(tool: Tool) -> Tool:
    return replace(tool, parameters=enforceable(tool))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _words(schema: Mapping[str, Any]) -> list[str]:
    """What a string may be, where a schema says that it is one of some."""
    given = schema.get("enum", [schema.get("const")])
    return [word for word in given if isinstance(word, str) and schema.get("const", word) == word]


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema, for no other properties than it lists, unless it says something of others."""
    if "properties" not in schema or schema.keys() & _OPEN:
        return schema
    return {**schema, "additionalProperties": False}


_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "allOf", "$ref", "if"}
)


def _properties(tool: Tool) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Name, schema, and whether it must be there."""
    declared, required = tool.parameters.get("properties", {}), tool.parameters.get("required", ())
    for key in dict.fromkeys([*declared, *required]):
        schema = declared.get(key, {})
        yield key, schema if isinstance(schema, Mapping) else {}, key in required


def _document(tool: Tool, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a tool's schema that can stand alone."""
    definitions = {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps([schema, definitions])):
        if not reference.startswith(("#/$defs/", "#/definitions/")):
            raise _unkeepable(tool, reference, "a reference into $defs, in this model's calls")
    return {**definitions, **schema}


def _unkeepable(tool: Tool, value: str, rule: str) -> RequestError:
    return RequestError(
        f"the schema of {tool.name} cannot be kept to", code="BAD_SCHEMA", field="tools", value=value, limit=rule
    )
