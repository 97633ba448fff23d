"""One answer taken apart: reasoning first, then tool calls out of what is left."""

from __future__ import annotations

from bestiary.api.hooks import TextDelta, TextParser


def parse_text(parser: TextParser, text: str) -> TextDelta:
    """A whole answer at once, by a parser that has seen nothing yet."""
    return TextDelta() + parser.feed(text) + parser.finish()


class AnswerParser:
    """A `TextParser` of both kinds; None where an answer has nothing to be looked for. One an answer.

    Attributes:
        calls: how many tool calls have been told so far; an answer with any has finish reason "tool_calls".
    """

    def __init__(self, reasoning: TextParser | None = None, tools: TextParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self.calls = 0

    def feed(self, chunk: str) -> TextDelta:
        return self._calls_of(TextDelta(chunk) if self._reasoning is None else self._reasoning.feed(chunk))

    def finish(self) -> TextDelta:
        delta = TextDelta() if self._reasoning is None else self._calls_of(self._reasoning.finish())
        return delta if self._tools is None else self._counted(delta + self._tools.finish())

    def _calls_of(self, delta: TextDelta) -> TextDelta:
        if self._tools is None or not delta.content:
            return delta
        return self._counted(TextDelta(reasoning=delta.reasoning) + self._tools.feed(delta.content))

    def _counted(self, delta: TextDelta) -> TextDelta:
        self.calls = max([self.calls, *(each.index + 1 for each in delta.tool_calls)])
        return delta
