"""Standard error of processes that work on whoever reads what they say, or does not."""

from __future__ import annotations

import io
import sys
from typing import Any


class _Dropping(io.FileIO):
    """A file that takes what it cannot write (the disk is full, the reader is gone), and drops it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def never_fail_stderr() -> None:
    """From now on, what this process says on standard error is written where it can be, and no error where it cannot:
    a log on a full disk ends no answer."""
    if sys.stderr is not None:
        raw = io.BufferedWriter(_Dropping(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
