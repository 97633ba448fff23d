"""A program at a pseudo-terminal, as before a person: keys go in, and what is shown is read until it is there."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_DEADLINE = 60.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][AB0]|[=>])")


class Terminal:
    """Attributes: shown: everything the program wrote, as it came."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], size: tuple[int, int]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bestiary", *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            env=dict(environment), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C needs a terminal of its own
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        self._seen = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown after what was waited for before; returns all up to its end, without escapes."""
        deadline = time.monotonic() + _DEADLINE
        while (place := self.text.find(text, self._seen)) < 0:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{text!r} was never shown; shown was {self.text[self._seen :]!r}")
        before, self._seen = self._seen, place + len(text)
        return self.text[before : self._seen]

    @property
    def text(self) -> str:
        """All that was shown, without escapes."""
        return _ESCAPES.sub("", self.shown).replace("\r\n", "\n")

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + _DEADLINE
        while self._read():
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end; shown was {self.text[self._seen :]!r}")
        return self.process.wait(_DEADLINE)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the program has closed its end
            return False
        self.shown += self._decode(data)
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(_DEADLINE)
        os.close(self._ours)


@contextmanager
def terminal(
    *arguments: str, environment: Mapping[str, str] | None = None, rows: int = 30, columns: int = 80
) -> Iterator[Terminal]:
    """A `bestiary` command line at a terminal of this size."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("BESTIARY_")}
    path = os.pathsep.join(filter(None, sys.path))
    made = Terminal(
        list(arguments), ours | {"PYTHONPATH": path, "TERM": "xterm"} | dict(environment or {}), (rows, columns)
    )
    try:
        yield made
    finally:
        made.close()
