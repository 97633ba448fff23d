"""The text of one answer as its parser sees it: all there, though it arrives in pieces.

A parser is written as a script, a generator that reads characters in order and yields whenever it needs one that has
not come. What a script does thus depends on the characters alone. Everything read is passed on, or kept by `record`
until it is known what it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

from bestiary.api.hooks import TextDelta, ToolCallDelta

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""A part of a script; its value comes when the text for it has come."""
Emit: TypeAlias = Callable[[str], None]

_SPACE = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")


class Malformed(Exception):
    """The next character cannot be what the format asks for; all before it has been read."""


class Marks:
    """Fixed strings to look for together: the first to begin wins, of several at one place the longest."""

    def __init__(self, marks: Iterable[str]) -> None:
        longest_first = sorted(set(marks), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._heads = {mark[:length] for mark in longest_first for length in range(1, len(mark))}
        self._first = re.compile("|".join({re.escape(mark[0]) for mark in longest_first}) or r"(?!)")
        self._reach = max(map(len, longest_first), default=1) - 1

    def find(self, text: str, start: int, ended: bool) -> tuple[int, str]:
        """Where the next mark begins, and the mark. Without one ("") the place up to which there is certainly none;
        unless the text has `ended`, that is before what more text could make a mark."""
        found = self._pattern.search(text, start)
        pending = len(text) if ended else self._pending(text, start)
        if found is not None and found.start() < pending:
            return found.start(), found[0]
        return pending, ""

    def _pending(self, text: str, start: int) -> int:
        at = max(start, len(text) - self._reach)
        while (found := self._first.search(text, at)) is not None:
            at = found.start()
            if text[at:] in self._heads:
                return at
            at += 1
        return len(text)


class Reader:
    """What has come and was not read yet. Owned by one parser; its script reads, `add` and `end` bring more."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._record: list[str] | None = None
        self._recorded_to = 0

    def add(self, chunk: str) -> None:
        if self._record is not None:
            self._record.append(self._text[self._recorded_to : self._at])
        self._text = self._text[self._at :] + chunk
        self._at = self._recorded_to = 0

    def end(self) -> None:
        self._ended = True

    def record(self, before: str = "") -> None:
        """Keep what is read from now on, behind `before`."""
        self._record, self._recorded_to = [before], self._at

    def forget(self) -> None:
        self._record = None

    def recorded(self) -> str:
        """What was kept, which is then forgotten; empty where nothing is."""
        if self._record is None:
            return ""
        text = "".join(self._record) + self._text[self._recorded_to : self._at]
        self._record = None
        return text

    def peek(self) -> Steps[str]:
        """The next character, which stays; "" at the end."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def skip(self, characters: int = 1) -> None:
        """Read what was peeked at, or seen."""
        self._at += characters

    def spaces(self) -> Steps[str]:
        return (yield from self.run(_SPACES))

    def run(self, pattern: re.Pattern[str], limit: int | None = None) -> Steps[str]:
        """Characters of a class (a pattern ``[…]*``), as many as there are, or `limit`."""
        pieces, left = [], limit
        while left != 0 and (yield from self.peek()):
            found = pattern.match(self._text, self._at, len(self._text) if left is None else self._at + left)
            piece = "" if found is None else found[0]
            if not piece:
                break
            pieces.append(piece)
            self._at += len(piece)
            left = None if left is None else left - len(piece)
        return "".join(pieces)

    def some(self, pattern: re.Pattern[str]) -> str:
        """Those of them that are there already; the next one has been peeked at."""
        found = pattern.match(self._text, self._at)
        piece = "" if found is None else found[0]
        self._at += len(piece)
        return piece

    def sees(self, mark: str) -> Steps[bool]:
        """Whether `mark` comes next; nothing is read."""
        while not self._text.startswith(mark, self._at):
            if self._ended or not mark.startswith(self._text[self._at :]):
                return False
            yield
        return True

    def take(self, mark: str) -> Steps[bool]:
        """Read `mark` if it comes next, and any white space before it; no mark is there always."""
        yield from self.spaces()
        seen = yield from self.sees(mark)
        self._at += len(mark) if seen else 0
        return seen

    def need(self, mark: str) -> Steps[None]:
        """Read `mark`, with any white space where it has some, and before it. Raises Malformed."""
        for part in mark.split():
            if not (yield from self.take(part)):
                raise Malformed

    def until(self, marks: Marks, emit: Emit) -> Steps[str]:
        """Pass text on up to one of `marks`, which is read and returned; "" at the end of the text."""
        while True:
            end, mark = marks.find(self._text, self._at, self._ended)
            if end > self._at:
                emit(self._text[self._at : end])
            self._at = end + len(mark)
            if mark or self._ended:
                return mark
            yield

    def before(self, mark: str, limit: int) -> Steps[str]:
        """The text before `mark`, which is read too. Raises Malformed where it is longer than `limit`, all of which
        then has been read, or the text ends."""
        marks, pieces, left = Marks([mark]), [], limit
        while True:
            end, found = marks.find(self._text, self._at, self._ended)
            piece = self._text[self._at : end][:left]
            pieces.append(piece)
            left -= len(piece)
            self._at += len(piece)
            if self._at < end or (self._ended and not found):
                raise Malformed
            if found:
                self._at += len(found)
                return "".join(pieces)
            yield


class Output:
    """What a script has found since the last `take`."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[str | None, list[str]]] = {}

    def content(self, text: str) -> None:
        self._content.append(text)

    def reasoning(self, text: str) -> None:
        self._reasoning.append(text)

    def call(self, index: int, name: str | None, arguments: str) -> None:
        if index not in self._calls:
            self._calls[index] = (name, [])
        self._calls[index][1].append(arguments)

    def take(self) -> TextDelta:
        calls = tuple(ToolCallDelta(index, name, "".join(text)) for index, (name, text) in self._calls.items())
        delta = TextDelta("".join(self._content), "".join(self._reasoning), calls)
        self._content.clear()
        self._reasoning.clear()
        self._calls.clear()
        return delta


class ScriptParser:
    """A `TextParser` that runs a script."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._output = Output()
        self._script = self._read()

    def _read(self) -> Steps[None]:
        """The script. Ends when the text does."""
        raise NotImplementedError

    def feed(self, chunk: str) -> TextDelta:
        if not chunk:
            return TextDelta()
        self._reader.add(chunk)
        next(self._script, None)
        return self._output.take()

    def finish(self) -> TextDelta:
        self._reader.end()
        for _ in self._script:
            continue
        return self._output.take()


class EdgeTrimmer:
    """Passes text on without the white space at its two ends: what may be the end's is kept back.

    Args:
        fresh: nothing came yet, so white space that comes first is dropped.
    """

    def __init__(self, emit: Emit, *, fresh: bool) -> None:
        self._emit = emit
        self._fresh = fresh
        self._passed = False
        self._between = ""
        self._space: list[str] = []

    def feed(self, piece: str) -> None:
        text = piece.lstrip(_SPACE) if self._fresh else piece
        if not text:
            return
        self._fresh = False
        body = text.rstrip(_SPACE)
        if body:
            self._emit(self._between + "".join(self._space) + body)
            self._passed, self._between = True, ""
            self._space.clear()
        self._space.append(text[len(body) :])

    def restart(self, between: str = "") -> None:
        """Drops what is kept back; what comes is a beginning again, with `between` before it if it is not the first."""
        self._fresh = True
        self._between = between if self._passed else ""
        self._space.clear()

    def finish(self) -> None:
        """What was kept back is passed on after all."""
        self._emit("".join(self._space))
        self._space.clear()
