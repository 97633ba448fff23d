"""What commands write: tables for people (rich on a terminal, plain columns elsewhere), JSON for programs.

Standard output is for results, standard error for everything said about them. Text that comes from files or packages
passes `clean`, so that nobody's metadata moves the cursor.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bestiary.api.errors import BestiaryError

from .streams import abandon


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads, and rows of text; the last column may be long."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


def pairs(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    """A table of names and values; a value of None is left out."""
    return Table(title, ("what", "value"), [(name, str(value)) for name, value in rows if value is not None])


def show(tables: Sequence[Table]) -> None:
    """Print the tables that have rows."""
    filled = [table for table in tables if table.rows]
    if sys.stdout.isatty():
        _show_rich(filled)
        return
    for index, table in enumerate(filled):
        print(("\n" if index else "") + f"# {_one_line(table.title)}")
        for line in plain_lines(table):
            print(line)


def plain_lines(table: Table) -> Iterator[str]:
    """Head and rows in aligned columns two spaces apart, one row a line whatever its width; "-" stands for nothing."""
    lines = [table.columns, *([_one_line(cell) or "-" for cell in row] for row in table.rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _show_rich(tables: Sequence[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    for table in tables:
        drawn = RichTable(title=Text(_one_line(table.title), "bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for column in table.columns:
            drawn.add_column(column, overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(_one_line(cell)) for cell in row))
        console.print(drawn)


def write_json(document: Any) -> None:
    """One JSON document on standard output; numbers that JSON does not have become null."""
    print(_json(document, indent=2))


def write_json_line(document: Any) -> None:
    """The same on one line, at once: a program may be waiting for it."""
    print(_json(document, indent=None), flush=True)


def _json(document: Any, indent: int | None) -> str:
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    return json.dumps(_finite(document), ensure_ascii=not unicode, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """A line for the person, on standard error. Where that cannot be written, there is nobody to tell."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)


def clean(text: str) -> str:
    """`text` with control characters written as escapes; lines stay lines."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def _one_line(text: str) -> str:
    return clean(" ".join(text.split()))


def sentence(error: BestiaryError) -> str:
    """An error where there is room for one line: what it is, of which things, and what to do."""
    things = f" ({', '.join(error.details)})" if error.details else ""
    return " ".join(f"{error.message}{things}{'' if error.fix is None else f': {error.fix}'}".split())


def size(count: float) -> str:
    """Bytes for people: ``"512 B"``, ``"93.8 MiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """While it lasts, notices and warnings of ours become items of the list instead of lines on standard error."""
    texts: list[str] = []
    handler = _Collector(texts)
    logger = logging.getLogger("bestiary")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
