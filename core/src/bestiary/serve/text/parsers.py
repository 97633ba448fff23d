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
    """Cuts a stream at the next tag, the tags taking turns: ``(text, False)`` before one, ``(text, True)`` up to one."""

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
        self._space = ""
        self._after_call = False

    def feed(self, chunk: str) -> TextDelta:
        content: list[str] = []
        calls: list[ToolCall] = []
        for piece, tagged in self._split.feed(chunk):
            was_inside = self._split.inside != tagged
            if not was_inside:
                content.append(self._outside(piece))
                continue
            self._block.append(piece)
            if tagged:
                self._end_block(content, calls, self.CLOSING)
        return TextDelta("".join(content), "", tuple(calls))

    def finish(self) -> TextDelta:
        content: list[str] = []
        calls: list[ToolCall] = []
        rest = self._split.finish()
        if self._split.inside:
            self._block.append(rest)
            self._end_block(content, calls, "")
        else:
            content.append(self._outside(rest))
        if not self._after_call:
            content.append(self._space)
        self._space = ""
        return TextDelta("".join(content), "", tuple(calls))

    def _outside(self, piece: str) -> str:
        """Content, its trailing white space kept back until it is known not to stand before a call."""
        if self._after_call:
            piece = piece.lstrip(_SPACE)
        if not piece:
            return ""
        self._after_call = False
        body = piece.rstrip(_SPACE)
        if not body:
            self._space += piece
            return ""
        body, self._space = self._space + body, piece[len(body) :]
        return body

    def _end_block(self, content: list[str], calls: list[ToolCall], closing: str) -> None:
        text = "".join(self._block)
        self._block.clear()
        call = _tool_call(text)
        if call is None:
            content.append(self._outside(f"{self.OPENING}{text}{closing}"))
        else:
            calls.append(call)
            self._space, self._after_call = "", True


def _tool_call(text: str) -> ToolCall | None:
    """The call a block holds; None unless it is one JSON object with a name and an object of arguments."""
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse)
        name, arguments = data["name"], data.get("arguments", {})
        if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=not _encodable(text), allow_nan=False)
        return ToolCall(name, written) if _encodable(name + written) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _encodable(text: str) -> bool:
    """Whether it holds no lone surrogate, written out or as an escape that becomes one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\\ud" not in text.lower()


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
        self._held = ""
        self._space = ""
        self._fresh = True

    def feed(self, chunk: str) -> TextDelta:
        return self._state(chunk) if chunk else TextDelta()

    def finish(self) -> TextDelta:
        held, self._held = self._held, ""
        if self._state == self._reasoning:
            return TextDelta(reasoning=self._trimmed(held))
        return TextDelta(content=held)

    def _beginning(self, chunk: str) -> TextDelta:
        """Nothing but white space and perhaps the start of the opening tag so far."""
        self._held += chunk
        text = self._held.lstrip(_SPACE)
        if self.OPENING.startswith(text) and text != self.OPENING:
            return TextDelta()
        held, self._held = self._held, ""
        if not text.startswith(self.OPENING):
            self._state = self._content
            self._fresh = False
            return TextDelta(content=held)
        self._state = self._reasoning
        return self.feed(text[len(self.OPENING) :])

    def _reasoning(self, chunk: str) -> TextDelta:
        text = self._held + chunk
        at = text.find(self.CLOSING)
        if at >= 0:
            self._held = ""
            thought = self._trimmed(text[:at])
            self._state, self._fresh = self._content, True
            return TextDelta(reasoning=thought) + self.feed(text[at + len(self.CLOSING) :])
        keep = len(text) - _overlap(text, 0, self.CLOSING)
        self._held = text[keep:]
        return TextDelta(reasoning=self._trimmed(text[:keep]))

    def _content(self, chunk: str) -> TextDelta:
        text = chunk.lstrip(_SPACE) if self._fresh else chunk
        self._fresh = self._fresh and not text
        return TextDelta(content=text)

    def _trimmed(self, piece: str) -> str:
        """Reasoning without white space at its two ends: what may be the end's is kept back."""
        if self._fresh:
            piece = piece.lstrip(_SPACE)
        if not piece:
            return ""
        self._fresh = False
        body = piece.rstrip(_SPACE)
        if not body:
            self._space += piece
            return ""
        body, self._space = self._space + body, piece[len(body) :]
        return body


@hookimpl
def tool_call_parsers() -> Offers:
    return {"hermes": "bestiary.serve.text.parsers:HermesToolCallParser"}


@hookimpl
def reasoning_parsers() -> Offers:
    return {"think": "bestiary.serve.text.parsers:ThinkReasoningParser"}
