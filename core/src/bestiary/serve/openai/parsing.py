"""Reasoning and tool calls out of an answer's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bestiary.api.hooks import TextDelta, TextParser

if TYPE_CHECKING:
    from .service import Service


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What became certain of call number `index`: its name, once, and more text of its arguments."""

    index: int
    name: str | None
    arguments: str


class PlainText:
    """All of it is content."""

    def feed(self, chunk: str) -> TextDelta:
        return TextDelta(chunk)

    def finish(self) -> TextDelta:
        return TextDelta()


def answer_parser(service: Service, prompt: str, *, tools: bool) -> TextParser:
    """A parser for one answer to `prompt`. tools: the request has some, and did not forbid them."""
    return PlainText()


def call_deltas(delta: TextDelta, before: int) -> list[CallDelta]:
    """The calls in `delta`, when `before` of them were known."""
    return [CallDelta(before + number, each.name, each.arguments) for number, each in enumerate(delta.tool_calls)]
