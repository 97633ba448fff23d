"""JSON from a model directory, read as hostile data: bounded in size, depth and count before Python builds anything.

Stricter than `json.load`: a name given twice, NaN, numbers no float can hold, lone surrogates and byte order marks are
errors. Python's own parser recurses once a level, so the depth is measured on the bytes first.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bestiary.api.errors import BestiaryError, ConfigError, ModelError

MAX_CONFIG_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_VALUES = 2_000_000
MAX_QUOTES = 4_000_000
MAX_DIGITS = 64

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))


def read_json(path: str | Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object that the file holds.

    Raises:
        ConfigError: the file is missing, not regular, too large, not UTF-8, not JSON, or breaks a rule above.
    """
    path = Path(path)
    with open_regular(path, ConfigError) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        size = max(path.stat().st_size, len(data))
        raise ConfigError(f"{path.name} is too large", field=str(path), limit=f"at most {max_bytes} bytes", value=size)
    return parse_json_object(data, name=str(path))


def open_regular(path: Path, error: type[ModelError]) -> BinaryIO:
    """The file opened for reading, if it is (a link to) a regular file; never waits on a FIFO or touches a device."""
    try:
        _refuse_irregular(path, os.stat(path), error)
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise error(
            f"{path.name} cannot be read: {reason}", field=str(path), fix="check the path and its rights"
        ) from cause
    try:
        _refuse_irregular(path, os.fstat(file.fileno()), error)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_irregular(path: Path, status: os.stat_result, error: type[ModelError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "a device")
        raise error(f"{path.name} is {kind}", field=str(path), limit="a regular file", value=kind)


def parse_json_object(data: bytes, *, name: str, error: type[BestiaryError] = ConfigError) -> dict[str, Any]:
    """The JSON object in `data`; `name` (a path) stands in errors, which are of class `error`."""
    _check_structure(data, name, error)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_float,
            parse_int=_integer,
            parse_constant=lambda literal: _Refused("a finite number", literal),
        )
    except UnicodeDecodeError as cause:
        offset = f"byte {cause.start}"
        raise error(
            "not UTF-8", field=f"{name}, {offset}", limit="UTF-8", value=data[cause.start : cause.end]
        ) from cause
    except json.JSONDecodeError as cause:
        place = f"{name}, line {cause.lineno} column {cause.colno}"
        near = cause.doc[cause.pos : cause.pos + 40]
        raise error(f"not JSON: {cause.msg}", field=place, limit="one JSON object", value=near) from cause
    for where, refused in _refused_values(value):
        place = f"{name}: {where}" if where else name
        raise error("a value is refused", field=place, limit=refused.rule, value=refused.literal)
    if not isinstance(value, dict):
        raise error("not a JSON object", field=name, limit="an object at the top", value=type(value).__name__)
    return value


def _check_structure(data: bytes, name: str, error: type[BestiaryError]) -> None:
    """Depth and number of values, without recursion. Stops where the parser would: at the first surplus bracket."""
    quotes = data.count(b'"')
    if quotes > MAX_QUOTES:
        raise error("too many strings", field=name, limit=f"at most {MAX_QUOTES} quotation marks", value=quotes)
    structure = _STRING.sub(b"", data).translate(None, _ALL_BUT_STRUCTURE)
    if len(structure) > MAX_VALUES:
        raise error("too many values", field=name, limit=f"at most {MAX_VALUES}", value=len(structure))
    depth = 0
    for byte in structure:
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise error(
                    "nested too deeply", field=name, limit=f"at most {MAX_DEPTH} levels", value=f"over {MAX_DEPTH}"
                )
        elif byte in b"]}":
            depth -= 1
            if depth < 0:
                return


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands in the parsed value for what is legal to Python's parser but not to us, until its place is known."""

    rule: str
    literal: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        result[twice] = _Refused("each name once in an object", twice)
    return result


def _float(literal: str) -> float | _Refused:
    value = float(literal)
    return value if math.isfinite(value) else _Refused("a finite number", literal)


def _integer(literal: str) -> int | _Refused:
    return int(literal) if len(literal) <= MAX_DIGITS else _Refused(f"at most {MAX_DIGITS} digits", literal)


def _refused_values(top: Any) -> Iterator[tuple[str, _Refused]]:
    """Every refused value and its path (``rope_scaling.factor``, ``layers[3]``), without recursion."""
    stack: list[tuple[str, Any]] = [("", top)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, _Refused):
            yield where, value
        elif isinstance(value, str) and _has_surrogate(value):
            yield where, _Refused("Unicode text without lone surrogates", ascii(value))
        elif isinstance(value, list):
            stack += [
                (f"{where}[{index}]", item) for index, item in enumerate(value) if not isinstance(item, int | float)
            ]
        elif isinstance(value, dict):
            for key, item in value.items():
                if _has_surrogate(key):
                    yield where, _Refused("Unicode text without lone surrogates", ascii(key))
                else:
                    stack.append((f"{where}.{key}" if where else key, item))


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
