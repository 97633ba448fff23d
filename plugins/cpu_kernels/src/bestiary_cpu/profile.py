"""Where the time of a recorded step goes: every node by itself, in the order of the step.

In that order caches hold what they hold in the step; a matrix read again at once would come from them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from statistics import median

from bestiary.nn.graphs import KernelTime

from .costs import Cost, cost_of, name_of
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
    costs = []
    for node, piece in zip(nodes, pieces, strict=True):
        piece()
        costs.append(cost_of(node, native))  # now, since what it looks up lies where later nodes may write
    times: list[list[float]] = [[] for _ in pieces]
    idle: list[float] = []
    end = time.perf_counter() + seconds
    while len(idle) < _LEAST or (time.perf_counter() < end and len(idle) < _MOST):
        for piece, found in zip([*pieces, nothing], [*times, idle], strict=True):
            start = time.perf_counter()
            piece()
            found.append(time.perf_counter() - start)
    call = median(idle)
    return _grouped(nodes, costs, [max(0.0, median(found) - call) for found in times])


def _grouped(nodes: Sequence[Call | TorchCall], costs: Sequence[Cost], seconds: Sequence[float]) -> list[KernelTime]:
    groups: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for node, cost, taken in zip(nodes, costs, seconds, strict=True):
        groups.setdefault((name_of(node), cost.shape), []).append((taken, cost.bytes, cost.operations))
    return [KernelTime(*key, len(same), *map(sum, zip(*same, strict=True))) for key, same in groups.items()]
