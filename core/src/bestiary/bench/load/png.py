"""Pictures of a run as a PNG file, drawn by matplotlib (the extra `plots`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bestiary.api.errors import UsageError

from .figures import gaps
from .load import Run

_EXTRA = "pip install 'bestiary[plots]'"


def require_matplotlib() -> None:
    """Raise `UsageError`, with the command that helps, where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a PNG needs matplotlib, which is not installed", field="png", fix=_EXTRA)


def write_png(run: Run, path: Path, title: str) -> None:
    """First tokens and gaps as histograms, tokens a second and requests under way over the time of the run.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    answers = [each for each in run.samples if each.error is None]
    figure = Figure(figsize=(10, 7), layout="constrained")
    (first, between), (rate, running) = figure.subplots(2, 2)
    figure.suptitle(title)
    first.hist([1e3 * each.ttft for each in answers if each.ttft is not None], bins=40)
    first.set(title="to the first token", xlabel="ms", ylabel="requests")
    between.hist([1e3 * gap for each in answers for gap in gaps(each)], bins=80, log=True)
    between.set(title="between pieces of text", xlabel="ms", ylabel="pieces")
    times = [at for each in answers for at in each.pieces]
    if times:
        counts, edges = _rate(times)
        rate.stairs(counts, edges, fill=True)
    rate.set(title="pieces of text a second", xlabel="s")
    running.step(*_running(run), where="post")
    running.set(title="requests under way", xlabel="s")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", field="png") from error


def _rate(times: list[float], bins: int = 60) -> tuple[list[float], list[float]]:
    width = max(times) / bins or 1.0
    counts = [0] * bins
    for at in times:
        counts[min(bins - 1, int(at / width))] += 1
    return [count / width for count in counts], [index * width for index in range(bins + 1)]


def _running(run: Run) -> tuple[list[float], list[int]]:
    """Times, and how many requests were under way from each of them on."""
    changes = sorted([(each.sent, 1) for each in run.samples] + [(each.end, -1) for each in run.samples])
    times, counts, now = [0.0], [0], 0
    for at, change in changes:
        now += change
        times.append(at)
        counts.append(now)
    return times, counts
