"""Where the time of a recorded step goes: every node by itself, in the order of the step.

In that order caches hold what they hold in the step; a matrix read again at once would come from them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import median

from bestiary.nn.graphs import KernelTime

from .costs import cost_of, name_of
from .pool import Call
from .recorder import TorchCall

_LEAST, _MOST = 5, 1000
"""Passes through the step."""


def profile(
    nodes: Sequence[Call | TorchCall],
    pieces: Sequence[Callable[[], None]],
    nothing: Callable[[], None],
    seconds: float,
    native: ctypes.CDLL,
) -> list[KernelTime]:
    """Medians over passes that last for `seconds`, after one that does not count, by kernel and shape, in the order in
    which these first come. What a call from Python costs, measured on `nothing`, is taken off."""
    times: list[list[float]] = [[] for _ in pieces]
    idle: list[float] = []
    end = None
    while len(idle) <= _LEAST or (time.perf_counter() < (end or 0) and len(idle) <= _MOST):
        for piece, found in zip([*pieces, nothing], [*times, idle], strict=True):
            start = time.perf_counter()
            piece()
            found.append(time.perf_counter() - start)
        end = end or time.perf_counter() + seconds
    call = median(idle[1:])
    each = [max(0.0, median(found[1:]) - call) for found in times]
    return _grouped(nodes, each, native)


def _grouped(nodes: Sequence[Call | TorchCall], seconds: Sequence[float], native: ctypes.CDLL) -> list[KernelTime]:
    rows = [(name_of(node), cost_of(node, native), taken) for node, taken in zip(nodes, seconds, strict=True)]
    first: dict[tuple[str, str], int] = {}
    for name, cost, _ in rows:
        first.setdefault((name, cost.shape), len(first))
    found = []
    ordered = sorted(rows, key=lambda row: first[row[0], row[1].shape])
    for (name, shape), group in groupby(ordered, key=lambda row: (row[0], row[1].shape)):
        same = list(group)
        sums = (
            sum(part) for part in zip(*((taken, cost.bytes, cost.operations) for _, cost, taken in same), strict=True)
        )
        found.append(KernelTime(name, shape, len(same), *sums))
    return found
