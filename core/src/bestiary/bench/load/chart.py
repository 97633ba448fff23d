"""Pictures of a run in a terminal, out of block characters."""

from __future__ import annotations

from collections.abc import Sequence

from .figures import gaps
from .load import Run

_BARS = " ▏▎▍▌▋▊▉█"
_STEPS = " ▁▂▃▄▅▆▇█"
_BINS, _WIDTH = 12, 40


def charts(run: Run, width: int = 80) -> list[str]:
    """Time to first token and between pieces as histograms, tokens a second over the run as a line of columns."""
    answers = [each for each in run.samples if each.error is None]
    firsts = [1e3 * each.ttft for each in answers if each.ttft is not None]
    between = [1e3 * gap for each in answers for gap in gaps(each)]
    pieces = [at for each in answers for at in each.pieces]
    lines = []
    for title, values in (("first token, ms", firsts), ("between pieces, ms", between)):
        lines += [title, *histogram(values), ""] if values else []
    return [*lines, *over_time("pieces of text a second", pieces, width)]


def histogram(values: Sequence[float]) -> list[str]:
    """A line a bin: where it begins, a bar, how many. Bins are equally wide up to the 99th percentile; the last has all
    above it."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    width = (high - low) / (_BINS - 1) or 1.0
    counts = [0] * _BINS
    for value in ordered:
        counts[min(_BINS - 1, int((value - low) / width))] += 1
    while len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    most = max(counts)
    return [f"{low + index * width:>10.1f} {_bar(count / most)} {count}" for index, count in enumerate(counts)]


def over_time(title: str, times: Sequence[float], width: int) -> list[str]:
    """A column for each part of the run; empty of nothing."""
    if not times:
        return []
    end = max(times) or 1.0
    columns = max(1, min(width - 2, _WIDTH * 2, len(times)))
    counts = [0] * columns
    for at in times:
        counts[min(columns - 1, int(at / end * columns))] += 1
    most = max(counts)
    line = "".join(_STEPS[-(-count * (len(_STEPS) - 1) // most)] for count in counts)
    return [f"{title}, at most {most * columns / end:.0f}", f" {line}", f" 0 s{f'{end:.1f} s':>{max(0, columns - 3)}}"]


def _bar(share: float) -> str:
    eighths = round(share * _WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BARS[rest] if rest else "")).ljust(_WIDTH)
