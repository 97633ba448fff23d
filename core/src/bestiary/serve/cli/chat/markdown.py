"""Markdown that is drawn while it grows.

What can no longer change (paragraphs that a blank line ended, closed blocks of code) is printed once and stays; what is
still growing is drawn below it again and again, at most as high as the terminal. So drawing costs what the last block
costs, however long the answer, and the whole answer can be scrolled back to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bestiary.serve.cli.streaming import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
_EVERY_SECONDS = 0.08
_THEME = "ansi_dark"


def settled(text: str) -> int:
    """How many characters of growing Markdown will be drawn in the same way whatever follows: up to the last blank line
    outside of code, or the last end of code."""
    fence, place, at = "", 0, 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        if not line.endswith("\n"):
            break
        found = _FENCE.match(line)
        if found and not fence and "`" not in found[2]:
            fence = found[1]
        elif found and fence and found[1].startswith(fence) and not found[2].strip():
            fence, place = "", at
        elif not fence and not line.strip():
            place = at
    return place


class MarkdownWriter:
    """A `Writer` for one answer, on a terminal. `end` must be called, for until then the cursor is hidden."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        import rich.markdown  # noqa: F401 - slow to import, and wanted soon
        from rich.console import Console as RichConsole

        self._console = console or RichConsole()
        self._clock = clock
        self._live: Live | None = None
        self._text = ""
        self._printed = self._blocks = self._thought = 0
        self._drawn = -_EVERY_SECONDS

    def think(self, text: str) -> None:
        """As it comes, and not as Markdown."""
        from rich.text import Text

        new = printable(text[self._thought :])
        self._thought = len(text)
        self._console.print(Text(new, "dim"), end="", soft_wrap=True)

    def update(self, text: str) -> None:
        if self._thought and text:
            self._console.print("\n")
            self._thought = 0
        self._text = printable(text)
        self._print_until(self._printed + settled(self._text[self._printed :]))
        if self._clock() - self._drawn >= _EVERY_SECONDS:
            self._drawn = self._clock()
            self._region().update(self._tail(), refresh=True)

    def end(self) -> None:
        """Print what is left, and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print_until(len(self._text))
        if self._thought:
            self._console.print()
        self._text, self._printed, self._blocks, self._thought = "", 0, 0, 0

    def _region(self) -> Live:
        """Where the growing part is drawn; it vanishes when it is stopped."""
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(
                Text(), console=self._console, auto_refresh=False, transient=True, redirect_stdout=False,
                redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        return self._live

    def _print_until(self, end: int) -> None:
        block = self._text[self._printed : end]
        self._printed = end
        if not block.strip():
            return
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text())
        if self._blocks:
            self._console.print()
        self._blocks += 1
        self._console.print(_markdown(block))

    def _tail(self) -> RenderableType:
        """The growing part; of more lines than the terminal has, the last."""
        from rich.segment import Segment, Segments

        growing = self._text[self._printed :]
        lines = self._console.render_lines(_markdown(growing), pad=False) if growing.strip() else []
        shown = lines[-max(1, self._console.height - 1) :]
        return Segments([segment for line in shown for segment in (*line, Segment.line())])


def _markdown(text: str) -> RenderableType:
    """Without hyperlinks: a link shows where it leads."""
    from rich.markdown import Markdown

    return Markdown(text, code_theme=_THEME, hyperlinks=False)
