"""Values as JSON or Python writes them, read character by character and passed on as JSON. Nothing is evaluated.

What is read lies on no stack but a list of brackets, so that depth costs no more than length. A control character in a
string, which JSON forbids and models write, is passed on as its escape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from .reader import Emit, Malformed, Reader, Steps

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[-+.0-9A-Za-z_]*")
_HEX = re.compile(r"[0-9A-Fa-f]*")
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]*'), "'": re.compile(r"""[^'"\\\x00-\x1f]*""")}
_CLOSERS = {"{": "}", "[": "]"}


class Dialect(NamedTuple):
    """What differs between JSON and Python.

    Attributes:
        words: words that are values → JSON.
        escapes: letters behind a backslash → JSON; `hexadecimal`: letters → number of digits that follow.
        other_escapes: any other letter behind a backslash leaves both as they are.
    """

    quotes: str
    words: Mapping[str, str]
    escapes: Mapping[str, str]
    hexadecimal: Mapping[str, int]
    other_escapes: bool


_COMMON = {letter: f"\\{letter}" for letter in '"\\bfnrt'}
JSON = Dialect('"', {word: word for word in ("true", "false", "null")}, _COMMON | {"/": "\\/"}, {"u": 4}, False)
PYTHON = Dialect(
    "\"'",
    dict(JSON.words) | {"True": "true", "False": "false", "None": "null"},
    _COMMON | {"'": "'", "a": "\\u0007", "v": "\\u000b", "0": "\\u0000", "\n": ""},
    {"x": 2, "u": 4, "U": 8},
    True,
)


def escaped(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def literal(reader: Reader, emit: Emit, dialect: Dialect = JSON) -> Steps[None]:
    """One value, through `emit`, up to its last character.

    Raises:
        Malformed: at the first character that no value could have there; what came before was passed on.
    """
    closers: list[str] = []
    while True:
        emit((yield from reader.spaces()))
        opened = yield from _opened(reader, emit, closers)
        if opened and not (yield from _closed(reader, emit, closers)):
            if closers[-1] == "}":
                yield from _key(reader, emit, dialect)
            continue
        if not opened:
            yield from _scalar(reader, emit, dialect)
        while closers:
            if (yield from _closed(reader, emit, closers)):
                continue
            yield from _punctuation(reader, emit, ",")
            if closers[-1] == "}":
                yield from _key(reader, emit, dialect)
            break
        else:
            return


def text_literal(reader: Reader, dialect: Dialect = JSON) -> Steps[str]:
    """A string, read and decoded. Raises Malformed, also for one that is not Unicode."""
    pieces: list[str] = []
    quote = yield from reader.peek()
    if not quote or quote not in dialect.quotes:
        raise Malformed
    yield from _string(reader, pieces.append, dialect, quote)
    text = str(json.loads("".join(pieces)))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed from None
    return text


def _opened(reader: Reader, emit: Emit, closers: list[str]) -> Steps[bool]:
    char = yield from reader.peek()
    if char not in _CLOSERS:
        return False
    reader.skip()
    emit(char)
    closers.append(_CLOSERS[char])
    return True


def _closed(reader: Reader, emit: Emit, closers: list[str]) -> Steps[bool]:
    emit((yield from reader.spaces()))
    if (yield from reader.peek()) != closers[-1]:
        return False
    reader.skip()
    emit(closers.pop())
    return True


def _punctuation(reader: Reader, emit: Emit, mark: str) -> Steps[None]:
    emit((yield from reader.spaces()))
    if (yield from reader.peek()) != mark:
        raise Malformed
    reader.skip()
    emit(mark)


def _key(reader: Reader, emit: Emit, dialect: Dialect) -> Steps[None]:
    emit((yield from reader.spaces()))
    quote = yield from reader.peek()
    if not quote or quote not in dialect.quotes:
        raise Malformed
    yield from _string(reader, emit, dialect, quote)
    yield from _punctuation(reader, emit, ":")


def _scalar(reader: Reader, emit: Emit, dialect: Dialect) -> Steps[None]:
    char = yield from reader.peek()
    if char and char in dialect.quotes:
        yield from _string(reader, emit, dialect, char)
        return
    word = yield from reader.run(_WORD)
    value = word if _NUMBER.fullmatch(word) else dialect.words.get(word)
    emit(word if value is None else value)
    if value is None:
        raise Malformed


def _string(reader: Reader, emit: Emit, dialect: Dialect, quote: str) -> Steps[None]:
    reader.skip()
    emit('"')
    while (char := (yield from reader.peek())) != quote:
        if not char:
            raise Malformed
        if char == "\\":
            reader.skip()
            yield from _escape(reader, emit, dialect)
        elif char < " " or char == '"':
            reader.skip()
            emit(escaped(char))
        else:
            emit(reader.some(_PLAIN[quote]))
    reader.skip()
    emit('"')


def _escape(reader: Reader, emit: Emit, dialect: Dialect) -> Steps[None]:
    letter = yield from reader.peek()
    if letter in dialect.hexadecimal:
        reader.skip()
        length = dialect.hexadecimal[letter]
        digits = yield from reader.run(_HEX, length)
        if len(digits) < length or int(digits, 16) > 0x10FFFF:
            emit(f"\\{letter}{digits}")
            raise Malformed
        emit(f"\\u{digits}" if length == 4 else json.dumps(chr(int(digits, 16)))[1:-1])
    elif letter in dialect.escapes:
        reader.skip()
        emit(dialect.escapes[letter])
    elif letter and dialect.other_escapes:
        emit("\\\\")
    else:
        emit("\\")
        raise Malformed
