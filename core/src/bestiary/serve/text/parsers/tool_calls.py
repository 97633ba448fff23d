"""Tool calls out of an answer, in whatever format: one machine, the formats are data."""

from __future__ import annotations

from bestiary.api.text_formats import JsonCall, NamedCall, TaggedCall, ToolFormat

from .reader import EdgeTrimmer, Malformed, Marks, ScriptParser, Steps
from .schemas import Schemas
from .shapes import Call, may_begin, read_call


class ToolCallParser(ScriptParser):
    """Calls out of the sections of a format; everything else is content.

    * What turns out to be no call before its name and the beginning of its arguments are known stays content, marks and
      all. White space next to calls is layout and dropped; content on both sides of calls is on lines of its own.
    * A call that was told stays. Where its arguments stop being JSON, the text up to the closing mark (the answer's end
      where there is none) follows as it stands: whoever called sees what the model wrote, and that it is no JSON.
    * A closing mark may be missing. What else a call holds beside name and arguments (an id) is dropped.

    Args:
        tools: the request's tools, whose schemas say what values between tags are.
    """

    def __init__(self, form: ToolFormat, tools: Schemas) -> None:
        super().__init__()
        self._form = form
        self._tools = tools
        self._content = EdgeTrimmer(self._output.content, fresh=False)
        self._calls = 0

    def _read(self) -> Steps[None]:
        openings = Marks(self._form.opening)
        if self._form.bare:
            yield from self._section("")
        while mark := (yield from self._reader.until(openings, self._content.feed)):
            yield from self._section(mark)
        self._content.finish()

    def _section(self, opening: str) -> Steps[None]:
        """The calls behind an opening mark, or at the beginning of the answer; what is none goes to the content."""
        reader, form = self._reader, self._form
        may_be_list = form.brackets or isinstance(form.call, JsonCall)
        reader.record(opening)
        try:
            listed = may_be_list and (yield from reader.take("["))
            if form.brackets and not listed and not isinstance(form.call, JsonCall):
                raise Malformed
            while not (over := (yield from self._call(bare=not opening))):
                if not (yield from self._another(listed)):
                    break
        except Malformed:
            self._content.feed(reader.recorded())
            return
        if not over:
            yield from reader.take("]" if listed else "")
            yield from reader.take(form.closing)
        reader.forget()

    def _call(self, *, bare: bool) -> Steps[bool]:
        """One call; true where the section is over with it. Raises Malformed where it is none."""
        reader = self._reader
        call = Call(reader, self._tell, self._tools if bare else None)
        over = False
        yield from reader.spaces()
        try:
            yield from read_call(self._form.call, reader, call, self._tools, self._form.closing, bare)
        except Malformed:
            if not call.told:
                raise
            unread = reader.recorded()
            if not call.whole:
                over = yield from self._rest(call, unread)
            elif unread.strip():  # not what a call ends in
                self._content.feed(unread)
                over = True
        reader.record()
        return over

    def _rest(self, call: Call, unread: str) -> Steps[bool]:
        """Broken arguments, as they stand; false where only the call is over, and not the section."""
        shape = self._form.call
        own = shape.closing.strip() if isinstance(shape, NamedCall | TaggedCall) else ""
        call.write(unread)
        mark = yield from self._reader.until(Marks(filter(None, (own, self._form.closing))), call.write)
        return not own or mark != own

    def _another(self, listed: bool) -> Steps[bool]:
        """Whether another call follows in this section; what separates them is read."""
        separator = "," if listed else (self._form.separator or "").strip()
        if separator:
            return (yield from self._reader.take(separator))
        return (yield from may_begin(self._form.call, self._reader))

    def _tell(self, name: str | None, arguments: str) -> None:
        if name is not None:
            self._content.restart("\n")
            self._calls += 1
        self._output.call(self._calls - 1, name, arguments)
