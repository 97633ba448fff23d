"""Reasoning apart from the answer, by the marks of a format."""

from __future__ import annotations

from bestiary.api.text_formats import ReasoningFormat

from .reader import EdgeTrimmer, Marks, ScriptParser, Steps


class ReasoningParser(ScriptParser):
    """Reasoning between marks; the rest is content.

    White space at the edges of either is layout and dropped; further pieces begin on a line of their own. Without a
    closing mark all of it is reasoning. Unless the format says `anywhere`, only an answer that begins with an opening
    mark has reasoning, and later marks are content.

    Args:
        started: the prompt already ended in an opening mark, so the answer begins inside.
    """

    def __init__(self, form: ReasoningFormat, *, started: bool = False) -> None:
        super().__init__()
        self._form = form
        self._started = started or form.inside
        self._thought = EdgeTrimmer(self._output.reasoning, fresh=True)
        self._content = EdgeTrimmer(self._output.content, fresh=False)

    def _read(self) -> Steps[None]:
        form, reader = self._form, self._reader
        closings, outside = Marks(form.closing), Marks(form.dropped + (form.opening if form.anywhere else ()))
        inside = (yield from self._opens()) or self._started
        while True:
            if inside:
                if not (yield from reader.until(closings, self._thought.feed)):
                    return
                self._content.restart("\n")
            mark = yield from reader.until(outside, self._content.feed)
            if not mark:
                break
            self._content.restart("\n")
            inside = mark in form.opening
            if inside:
                self._thought.restart("\n")
        self._content.finish()

    def _opens(self) -> Steps[bool]:
        """Whether the answer begins with an opening mark, which is read then."""
        self._reader.record()
        yield from self._reader.spaces()
        for mark in sorted(self._form.opening, key=len, reverse=True):
            if (yield from self._reader.take(mark)):
                self._reader.forget()
                return True
        before = self._reader.recorded()
        (self._thought if self._started else self._content).feed(before)
        return False
