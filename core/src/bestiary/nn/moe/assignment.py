"""Which of n things goes to which of n places, so that the most is gained (the assignment problem)."""

from __future__ import annotations

from collections.abc import Sequence


def best_assignment(gains: Sequence[Sequence[int]]) -> list[int]:
    """For each place its thing, so that the sum of ``gains[place][thing]`` is largest; in O(n³).

    Places come one by one, and each makes the least costly chain of changes to what earlier ones hold (Kuhn 1955). A
    pair costs ``budget[place] + price[thing] - gain``, which is zero for pairs in use and never negative, so the chain
    is a shortest path.
    """
    count = len(gains)
    budget, price = [max(row) for row in gains], [0] * count
    holder: list[int | None] = [None] * count
    for place in range(count):
        _admit(place, gains, budget, price, holder)
    found = [0] * count
    for thing, owner in enumerate(holder):
        if owner is not None:
            found[owner] = thing
    return found


def _admit(
    place: int, gains: Sequence[Sequence[int]], budget: list[int], price: list[int], holder: list[int | None]
) -> None:
    """Dijkstra from `place` to a thing that nobody holds; then the things along the path change hands."""
    reached: dict[int, tuple[int, int | None]] = {}  # thing → (cost of the path to it, the thing before it)
    settled: dict[int, int] = {}  # thing → cost
    asking, spent, last = place, 0, None
    while True:
        for thing, gain in enumerate(gains[asking]):
            cost = spent + budget[asking] + price[thing] - gain
            if thing not in settled and (thing not in reached or cost < reached[thing][0]):
                reached[thing] = cost, last
        last = min((thing for thing in reached if thing not in settled), key=lambda thing: reached[thing][0])
        spent = settled[last] = reached[last][0]
        owner = holder[last]
        if owner is None:
            break
        asking = owner
    budget[place] -= spent
    for thing, cost in settled.items():
        owner = holder[thing]
        price[thing] += spent - cost
        if owner is not None:
            budget[owner] -= spent - cost
    end: int | None = last
    while end is not None:
        before = reached[end][1]
        holder[end] = place if before is None else holder[before]
        end = before
