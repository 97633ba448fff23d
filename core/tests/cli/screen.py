"""What a terminal shows after what was written to it: as much of one as drawing Markdown needs."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Screen:
    """Attributes: lines: all that was ever shown, what scrolled away included. highest: how far up the cursor went."""

    def __init__(self) -> None:
        self.lines = [""]
        self.hidden = False
        self._row = self._column = 0
        self.highest = 0

    def feed(self, text: str) -> None:
        for found in _TOKEN.finditer(text):
            private, number, kind, carriage, line, shown = found.groups()
            if shown:
                before = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = before[: self._column] + shown + before[self._column + len(shown) :]
                self._column += len(shown)
            elif carriage:
                self._column = 0
            elif line:
                self._down()
            elif kind == "A":
                self._row -= int(number or 1)
                self.highest = max(self.highest, len(self.lines) - 1 - self._row)
            elif kind == "K":
                self.lines[self._row] = ""
            elif private and kind in "hl":
                self.hidden = kind == "l"
            elif kind != "m":
                raise AssertionError(f"a sequence that this screen does not know: {found[0]!r}")

    def _down(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.lines):
            self.lines.append("")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")
