"""How far loading is, on stderr: a bar with bytes and rate on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from .weights import Progress

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def load_progress(
    description: str, *, enabled: bool = True, stream: TextIO | None = None, counted: bool = False
) -> Iterator[Progress | None]:
    """A callback for `open_weights`; None where `enabled` is False. The bar lives as long as the context. What it is
    told are bytes, or where `counted` things."""
    out = sys.stderr if stream is None else stream
    if not enabled:
        yield None
    elif out.isatty():
        with _bar(description, out, counted) as callback:
            yield callback
    else:
        yield _Lines(description, out, counted)


def say(text: str, *, enabled: bool = True) -> None:
    """One line beside the bars."""
    if enabled:
        with suppress(OSError):  # as below
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(description: str, out: TextIO, counted: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    told: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),) if counted else (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *told, TimeRemainingColumn())
    with Bar(*columns, console=Console(file=out), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """A line when five seconds have passed since the last one, and one at the end."""

    def __init__(self, description: str, out: TextIO, counted: bool = False) -> None:
        self._description, self._out, self._counted = description, out, counted
        self._begun = self._last = time.monotonic()
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        at_end = done >= total
        if self._ended or not (at_end or now - self._last >= SECONDS_BETWEEN_LINES):
            return
        self._last, self._ended = now, at_end
        seconds = max(now - self._begun, 1e-6)
        unit, size = ("MB", 1e6) if total >= 1e6 else ("kB", 1e3)
        if self._counted:
            text = f"{self._description}: {done} of {total}, {seconds:.1f} s"
        else:
            text = f"{self._description}: {done / size:,.0f} of {total / size:,.0f} {unit}, {seconds:.1f} s"
            text += f", {done / seconds / size:,.0f} {unit}/s"
        with suppress(OSError):  # a full disk is no reason to load nothing
            print(text, file=self._out, flush=True)
