"""What a person types: lines with editing, history and completion; several lines as one message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from bestiary.serve.cli.output import say
from bestiary.serve.cli.reading import Lines, not_text

from .history import History, state_directory

QUOTES = '"""'
Complete = Callable[[str, str], Sequence[str]]
"""(the line before the word, the word) → what the word may become."""


class PipedMessages:
    """Standard input that is no terminal: a line is a message."""

    def __init__(self) -> None:
        self._lines = Lines()

    def next(self) -> str | None:
        """The next message without the space around it; None at the end."""
        return self._lines.next()


class TypedMessages:
    """A terminal. A line that ends in a backslash goes on in the next one, and between triple quotes lines are one
    message. Ctrl-C starts anew, Ctrl-D ends.

    Args:
        keep: whether what is typed is kept for other sessions. prompt: whether there is a prompt.
    """

    def __init__(self, complete: Complete, *, keep: bool, prompt: bool) -> None:
        self._prompt = prompt
        directory = state_directory() if keep else None
        if keep and directory is None:
            say("what you type is not kept for another time: there is no home directory")
        self._history = History(None if directory is None else directory / "chat_history", say)
        self._readline = _set_up_readline(complete, self._history.items)

    def next(self) -> str | None:
        """The next message without the space around it; None at the end."""
        while True:
            try:
                text = self._message()
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                raise not_text(error) from None
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /exit leaves)")
                continue
            self._history.add(text)
            if self._readline is not None and text:
                self._readline.add_history(text)
            return text

    def _message(self) -> str:
        line = self._line("> ").strip()
        if line.startswith(QUOTES):
            return self._quoted(line[len(QUOTES) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1].rstrip()
            lines.append(self._line("... ").rstrip())
        return "\n".join(lines).strip()

    def _quoted(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
        return "\n".join(lines).strip()

    def _line(self, prompt: str) -> str:
        shown = prompt if self._prompt else ""
        if sys.stdout.isatty():
            return input(shown)
        print(shown, end="", file=sys.stderr, flush=True)  # `input` would write it among the answers
        return input()


def _set_up_readline(complete: Complete, items: Sequence[str]) -> ModuleType | None:
    """`input` with editing, the history and completion by Tab; None where Python was built without it."""
    try:
        import readline
    except ImportError:
        say("lines cannot be edited: this Python was built without readline")
        return None
    found: list[str] = []

    def completer(word: str, state: int) -> str | None:
        if state == 0:
            found[:] = complete(readline.get_line_buffer()[: readline.get_begidx()], word)
        return found[state] if state < len(found) else None

    readline.set_auto_history(False)
    readline.clear_history()
    for item in items:
        readline.add_history(item)
    readline.set_completer(completer)
    readline.set_completer_delims(" \t\n")
    edits_with_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if edits_with_libedit else "tab: complete")
    return readline
