"""What a server's processes hold while it serves: samples over time, the slope of each, and what is left at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from .baseline import Holding, family

_ROLES = {"engine.process.child": "engine", "template_process": "templates", "structured.child": "grammars"}
"""Of a server's processes, by a part of their command lines."""
_SETTLED = 0.2
"""The share of the samples, from the first on, that the slope leaves out."""


def holdings(pid: int) -> dict[str, Holding]:
    """What each process of a server holds, by its part. Raises RuntimeError for one that nobody knows."""
    found = {"server": Holding.of(pid)}
    for child, line in family(pid).items():
        role = next((role for mark, role in _ROLES.items() if mark in line), None)
        if role is None or role in found:
            raise RuntimeError(f"what is the process {child}? {line}")
        found[role] = Holding.of(child)
    return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line nearest to the points, by least squares."""
    middle, height = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - height) for x, y in zip(xs, ys, strict=True)) / across


@dataclass
class Samples:
    """A server's memory again and again. The first sample is the baseline, taken when everything was used once.

    Args:
        pid: the server's.
    """

    pid: int
    requests: list[int] = field(default_factory=list)
    held: list[dict[str, Holding]] = field(default_factory=list)

    def take(self, requests: int) -> None:
        """After so many requests."""
        self.requests.append(requests)
        self.held.append(holdings(self.pid))

    def memory(self, role: str) -> list[int]:
        return [each[role].memory for each in self.held if role in each]

    def slopes(self) -> dict[str, float]:
        """KiB a request, of every process that was there from the first sample to the last."""
        first = int(len(self.held) * _SETTLED)
        xs = [float(each) for each in self.requests[first:]]
        return {
            role: slope(xs, [float(each) for each in self.memory(role)[first:]]) / 1024
            for role in self.held[0]
            if all(role in each for each in self.held)
        }

    def growth(self) -> dict[str, int]:
        """Bytes from the first sample to the last; of a process that came later, all it holds."""
        first, last = self.held[0], self.held[-1]
        return {role: now.memory - (first[role].memory if role in first else 0) for role, now in last.items()}


def port_is_free(port: int) -> bool:
    """Whether nobody listens there any more."""
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return all(each.laddr.port != port for each in listening)
