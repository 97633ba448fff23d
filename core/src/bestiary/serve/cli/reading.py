"""What people and programs write to us: text, or an error that names the byte which is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bestiary.api.errors import UsageError


def read_all() -> str:
    """All of standard input.

    Raises:
        UsageError: it is not text in the stream's encoding.
    """
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if binary is None else _decoded(binary.read(), 0, _encoding())


def read_template(path: Path | None) -> str | None:
    """The chat template in a file, where one is named.

    Raises:
        UsageError: the file is not UTF-8, or cannot be read.
    """
    return None if path is None else read_text(path, "chat_template")


def read_text(path: Path, field: str) -> str:
    """The text in a file that was given for `field`.

    Raises:
        UsageError: it is not UTF-8, or cannot be read.
    """
    try:
        return _decoded(path.read_bytes(), 0, "utf-8", str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", field=field) from None


class Lines:
    """Standard input line by line, without the space around a line."""

    def __init__(self) -> None:
        self._read = 0

    def next(self) -> str | None:
        """The next line, None at the end.

        Raises:
            UsageError: it is not text in the stream's encoding. Lines before it have been read.
        """
        binary = getattr(sys.stdin, "buffer", None)
        if binary is None:
            line = sys.stdin.readline()
            return line.strip() if line else None
        data: bytes = binary.readline()
        before, self._read = self._read, self._read + len(data)
        return _decoded(data, before, _encoding()).strip() if data else None


def refuse_undecoded(text: str, field: str) -> None:
    """Refuse an argument in which Python kept bytes that are no text as lone surrogates.

    Raises:
        UsageError: naming the first of them.
    """
    if any("\udc80" <= char <= "\udcff" for char in text):
        _decoded(os.fsencode(text), 0, "utf-8", field)


def not_text(error: UnicodeDecodeError, before: int = 0, field: str = "standard input") -> UsageError:
    """The error for bytes that are not text; `before` of them were read before those that `error` speaks of."""
    return UsageError(
        f"{field} is not {error.encoding.upper()}",
        field=field,
        value=f"byte 0x{error.object[error.start]:02x} at offset {before + error.start}",
        fix="iconv -f latin1 -t utf-8, or from whatever encoding it is in",
    )


def _encoding() -> str:
    return getattr(sys.stdin, "encoding", None) or "utf-8"


def _decoded(data: bytes, before: int, encoding: str, field: str = "standard input") -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_text(error, before, field) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
