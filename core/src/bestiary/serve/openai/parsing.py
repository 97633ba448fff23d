"""Reasoning and tool calls out of an answer's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bestiary.api.hooks import TextDelta, TextParser

if TYPE_CHECKING:
    from .schemas.chat import ChatCompletionRequest
    from .service import Service


class PlainText:
    """All of it is content."""

    def feed(self, chunk: str) -> TextDelta:
        return TextDelta(chunk)

    def finish(self) -> TextDelta:
        return TextDelta()


def answer_parser(service: Service, request: ChatCompletionRequest, prompt: str) -> TextParser:
    """A parser for one answer to `prompt`."""
    return PlainText()
