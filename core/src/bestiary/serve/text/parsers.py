"""Tool calls and reasoning out of plain text, while it arrives. Text stays text: JSON is parsed, nothing is evaluated.

Both parsers are `TextParser`s (`bestiary.api.hooks`): the sum of their deltas depends on the text alone, not on how it
was cut into chunks, and each takes time linear in its length. They hold back what could be the beginning of a tag.

    hermes    <tool_call>{"name": "f", "arguments": {…}}</tool_call>, as Hermes, Qwen and others are trained to write
    think     <think>…</think> before the answer, as DeepSeek-R1, Qwen3 and others are trained to write
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from bestiary.api.hooks import Offers, TextDelta, TextParser, ToolCall, hookimpl

_SPACE = " \t\r\n"


def parse_text(parser: TextParser, text: str) -> TextDelta:
    """A whole answer at once, by a parser that has seen nothing yet."""
    return parser.feed(text) + parser.finish()


class TagSplitter:
    """Cuts a stream at its tags, opening and closing in turn, holding back what may be the beginning of the next."""

    def __init__(self, opening: str, closing: str, *, inside: bool = False) -> None:
        self._tags = (opening, closing)
        self._inside = inside
        self._held = ""

    @property
    def inside(self) -> bool:
        return self._inside

    def feed(self, chunk: str) -> Iterator[tuple[str, bool]]:
        """Pieces of text; True with a piece says that a tag followed it, and `inside` has changed."""
        text, start = self._held + chunk, 0
        while True:
            tag = self._tags[self._inside]
            at = text.find(tag, start)
            if at < 0:
                break
            self._held = ""
            self._inside = not self._inside
            yield text[start:at], True
            start = at + len(tag)
        keep = len(text) - _overlap(text, start, self._tags[self._inside])
        self._held = text[keep:]
        yield text[start:keep], False

    def finish(self) -> str:
        """What was held back and turned out to be no tag."""
        held, self._held = self._held, ""
        return held


class EdgeTrimmer:
    """Passes text on without the white space at its two ends: what may be the end's is kept back.

    Args:
        fresh: nothing came yet, so white space that comes first is dropped.
    """

    def __init__(self, *, fresh: bool) -> None:
        self._fresh = fresh
        self._space: list[str] = []

    def feed(self, piece: str) -> str:
        text = piece.lstrip(_SPACE) if self._fresh else piece
        if not text:
            return ""
        self._fresh = False
        body = text.rstrip(_SPACE)
        kept = "".join(self._space) if body else ""
        if body:
            self._space.clear()
        self._space.append(text[len(body) :])
        return kept + body

    def restart(self) -> None:
        """Drops what is kept back; what comes is a beginning again."""
        self._fresh = True
        self._space.clear()

    def finish(self) -> str:
        """What was kept back, for those who want it after all."""
        kept = "".join(self._space)
        self._space.clear()
        return kept


def _overlap(text: str, start: int, tag: str) -> int:
    """The length of the longest end of `text[start:]` that begins `tag` without being all of it."""
    for length in range(min(len(tag) - 1, len(text) - start), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


class HermesToolCallParser:
    """Calls out of ``<tool_call>`` blocks; everything else is content.

    A block that holds no call (not JSON, no name) stays content, tags and all: nothing the model wrote is lost. White
    space next to a call is layout and dropped. A last block without its closing tag counts if it holds a call.
    """

    OPENING, CLOSING = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._split = TagSplitter(self.OPENING, self.CLOSING)
        self._block: list[str] = []
        self._outside = EdgeTrimmer(fresh=False)

    def feed(self, chunk: str) -> TextDelta:
        delta = TextDelta()
        for piece, tagged in self._split.feed(chunk):
            was_inside = self._split.inside != tagged
            if not was_inside:
                delta += TextDelta(self._outside.feed(piece))
                continue
            self._block.append(piece)
            if tagged:
                delta += self._end_block(self.CLOSING)
        return delta

    def finish(self) -> TextDelta:
        rest = self._split.finish()
        if self._split.inside:
            self._block.append(rest)
            delta = self._end_block("")
        else:
            delta = TextDelta(self._outside.feed(rest))
        return delta + TextDelta(self._outside.finish())

    def _end_block(self, closing: str) -> TextDelta:
        text = "".join(self._block)
        self._block.clear()
        call = _tool_call(text)
        if call is None:
            return TextDelta(self._outside.feed(f"{self.OPENING}{text}{closing}"))
        self._outside.restart()
        return TextDelta(tool_calls=(call,))


def _tool_call(text: str) -> ToolCall | None:
    """The call a block holds; None unless it is one JSON object with a name and an object of arguments."""
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse)
        name, arguments = data["name"], data.get("arguments", {})
        if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()  # a lone surrogate could not be sent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ToolCall(name, written)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class ThinkReasoningParser:
    """Reasoning between ``<think>`` and ``</think>`` at the beginning of an answer; the rest is content.

    White space around the tags is layout and dropped. Later tags are content. Without the closing tag all of it is
    reasoning.

    Args:
        started: the prompt already ended in ``<think>``, so the answer begins inside.
    """

    OPENING, CLOSING = "<think>", "</think>"

    def __init__(self, *, started: bool = False) -> None:
        self._state: Callable[[str], TextDelta] = self._reasoning if started else self._beginning
        self._lead: list[str] = []
        self._held = ""
        self._thought = EdgeTrimmer(fresh=True)
        self._fresh = False

    def feed(self, chunk: str) -> TextDelta:
        return self._state(chunk) if chunk else TextDelta()

    def finish(self) -> TextDelta:
        lead, held = "".join(self._lead), self._held
        self._lead.clear()
        self._held = ""
        if self._state == self._reasoning:
            return TextDelta(reasoning=self._thought.feed(held))
        return TextDelta(content=lead + held)

    def _beginning(self, chunk: str) -> TextDelta:
        """Nothing but white space and perhaps the start of the opening tag so far."""
        if not self._held:
            text = chunk.lstrip(_SPACE)
            self._lead.append(chunk[: len(chunk) - len(text)])
            chunk = text
        self._held += chunk
        if len(self._held) < len(self.OPENING) and self.OPENING.startswith(self._held):
            return TextDelta()
        if not self._held.startswith(self.OPENING):
            self._state = self._content
            return self.finish()
        text, self._held = self._held[len(self.OPENING) :], ""
        self._lead.clear()
        self._state = self._reasoning
        return self.feed(text)

    def _reasoning(self, chunk: str) -> TextDelta:
        text = self._held + chunk
        at = text.find(self.CLOSING)
        if at >= 0:
            self._held = ""
            self._state, self._fresh = self._content, True
            return TextDelta(reasoning=self._thought.feed(text[:at])) + self.feed(text[at + len(self.CLOSING) :])
        keep = len(text) - _overlap(text, 0, self.CLOSING)
        self._held = text[keep:]
        return TextDelta(reasoning=self._thought.feed(text[:keep]))

    def _content(self, chunk: str) -> TextDelta:
        text = chunk.lstrip(_SPACE) if self._fresh else chunk
        self._fresh = self._fresh and not text
        return TextDelta(content=text)


@hookimpl
def tool_call_parsers() -> Offers:
    return {"hermes": "bestiary.serve.text.parsers:HermesToolCallParser"}


@hookimpl
def reasoning_parsers() -> Offers:
    return {"think": "bestiary.serve.text.parsers:ThinkReasoningParser"}
