"""How model families write tool calls and reasoning into their answers, as data.

A format is a value: the marks a family was trained to write, and the shape of what stands between them. One machine
reads all of them (`bestiary.serve.text.parsers`), and grammars that force a call are written from the same values. A
package offers one under a name by the hooks `tool_call_parsers` and `reasoning_parsers`.

Marks are written as the family writes them. When they are read, white space in and around them is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCall:
    """A call as one JSON object: ``{"name": "f", "arguments": {…}}``.

    Attributes:
        name, arguments: the keys. Of `arguments` the first is written, and all are read.
    """

    name: str = "name"
    arguments: tuple[str, ...] = ("arguments", "parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCall:
    """A name, a mark, and the arguments as a JSON object: ``f[ARGS]{…}``.

    Attributes:
        opening: stands before the name.
        header: is written after the name (an id, a content type), and whatever stands there is read over. None: nothing
            stands there.
        between: stands before the object.
        closing: stands after the object.
    """

    opening: str = ""
    header: str | None = None
    between: str
    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedCall:
    """A name, and each argument between tags: ``<function=f><parameter=k>v</parameter></function>``.

    A value is text. What it means comes from the tool's schema: where that says string it is one, otherwise it is JSON
    if it can be read as such.

    Attributes:
        opening, name_closing: stand around the name.
        key_opening, key_closing: stand around an argument's key.
        value_closing: ends its value.
        closing: ends the call.
        padding: once before and once after a value it is no part of it.
    """

    opening: str = ""
    name_closing: str = ""
    key_opening: str
    key_closing: str
    value_closing: str
    closing: str = ""
    padding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCall:
    """A call as Python writes it: ``f(a=1, b="x", c=[True, None])``. Keywords and literals alone; it is never run."""


CallShape: TypeAlias = JsonCall | NamedCall | TaggedCall | PythonCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family writes its calls: sections of an answer, each with one call or several.

    Attributes:
        call: the shape of one call.
        opening: marks that begin a section. The first is written, and all are read.
        closing: the mark that ends a section; read if it is there.
        bare: an answer may begin with a call without a mark before it. Only names of the request's tools count there.
        brackets: calls of a section are a list, ``[…, …]``.
        separator: stands between two calls of one section that is no list; None: each call has a section of its own.
        layout: white space written behind `opening` and before `closing`.
        signs: what a chat template of this family contains, all of it; without any it is found by `opening`.
    """

    call: CallShape
    opening: tuple[str, ...] = ()
    closing: str = ""
    bare: bool = False
    brackets: bool = False
    separator: str | None = None
    layout: str = ""
    signs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a family sets its reasoning apart from its answer.

    Attributes:
        opening, closing: marks around reasoning. The first of each is written, and all are read.
        inside: an answer begins inside, whether the prompt ends in the opening mark or not.
        anywhere: reasoning may come again and again; otherwise at the beginning alone.
        dropped: marks around the answer proper, which are neither reasoning nor answer.
        signs: what a chat template of this family contains, all of it; without any it is found by `closing`.
    """

    opening: tuple[str, ...]
    closing: tuple[str, ...]
    inside: bool = False
    anywhere: bool = False
    dropped: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
