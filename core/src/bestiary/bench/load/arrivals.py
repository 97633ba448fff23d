"""When requests start: as soon as another ends (closed loop), or at times of their own (open loop)."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` requests at any time: a server that is slow is asked less."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Open:
    """`rate` requests a second on average, as independent users send them: a Poisson process, drawn by `seed`."""

    rate: float
    seed: int

    def times(self, count: int) -> list[float]:
        """Seconds from the beginning, ascending; the first is 0."""
        chosen = random.Random(f"{self.seed}/arrivals")
        times, now = [], 0.0
        for _ in range(count):
            times.append(now)
            now += chosen.expovariate(self.rate)
        return times


Arrivals = Closed | Open
