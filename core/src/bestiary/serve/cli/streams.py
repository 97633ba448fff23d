"""The standard streams in whatever state they come: closed, full, abandoned by their reader, in another encoding."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from bestiary.api.errors import UsageError

CLOSED_PIPE = 141
"""The exit code of a process that SIGPIPE ended: what shells expect of a command whose reader has left."""

_UNWRITABLE = frozenset({errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT})


class NoInput(io.StringIO):
    """Stands for a standard input that is closed: empty."""


def open_streams() -> None:
    """Make the streams usable: characters that an encoding lacks become escapes, a closed input is empty, and what
    would be said on a closed standard error is dropped.

    Raises:
        UsageError: standard output is closed, and every command has something to write there.
    """
    if sys.stdin is None:
        sys.stdin = NoInput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        raise UsageError("standard output is closed, and there is nowhere to write to")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def is_lost(stream: TextIO, error: OSError) -> bool:
    """Whether `error` is about writing to `stream`: a space, which means nothing, cannot be written either."""
    if error.errno not in _UNWRITABLE or error.filename is not None:
        return False
    try:
        stream.write(" ")
    except OSError:
        return True
    return flush(stream) is not None


def flush(stream: TextIO | None) -> OSError | None:
    """Write what is buffered; returns why that is not possible."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    return None


def abandon(stream: TextIO) -> None:
    """What is still buffered and all that follows goes nowhere, so that the interpreter's last flush is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def give_up_stdout(error: OSError, say: Callable[[str], None]) -> int:
    """Standard output cannot be written: say so, unless its reader has merely left. Returns the exit code."""
    abandon(sys.stdout)
    if error.errno == errno.EPIPE:
        return CLOSED_PIPE
    say(f"standard output cannot be written: {error.strerror}")
    return 1
