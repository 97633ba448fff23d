"""Where experts should lie after measured load: pure functions of numbers, so that every rank finds the same answer.

A copy of an expert has an equal share of its load (tokens take turns among copies), and a rank the sum over its slots.
All ranks wait for the busiest one, so the largest sum is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from .assignment import best_assignment
from .placement import ExpertPlacement

SLACK = 0.02
"""How much of the busiest rank's load may be left on it so that fewer weights move."""


def rank_loads(placement: ExpertPlacement, loads: Sequence[float]) -> list[float]:
    """What each rank computes, where expert `e` has `loads[e]` tokens."""
    shares = [load / len(copies) for load, copies in zip(loads, placement.copies(), strict=True)]
    return [sum(shares[expert] for expert in placement.on_rank(rank)) for rank in range(placement.num_ranks)]


def imbalance(placement: ExpertPlacement, loads: Sequence[float]) -> float:
    """The busiest rank's load in multiples of an even share: 1 at best, and where there is no load at all."""
    found = rank_loads(placement, loads)
    return max(found) * len(found) / sum(found) if any(found) else 1.0


def rebalanced(old: ExpertPlacement, loads: Sequence[float]) -> ExpertPlacement:
    """A placement for `loads` that leaves as much as possible where `old` has it.

    The busiest rank has at most `SLACK` more than in the `balanced` one. Where changes to `old` come that close, they
    are preferred to a placement from scratch, which moves nearly everything.
    """
    scratch = with_fewest_moves(balanced(loads, old.num_ranks, old.num_physical), old)
    enough = max(rank_loads(scratch, loads)) * (1 + SLACK)
    changed = _changed(old, loads, enough)
    return changed if max(rank_loads(changed, loads)) <= enough else scratch


def balanced(loads: Sequence[float], num_ranks: int, num_physical: int) -> ExpertPlacement:
    """A placement from scratch whose largest rank load is small, never larger than with experts in order.

    Spare copies go to the experts whose copies are the heaviest, one by one. Then copies go to ranks, the heaviest
    first, each to the least loaded rank that has room (Graham 1969), one without that expert if there is one; at last
    the busiest rank swaps slots with others as long as that helps.
    """
    copies = _copies(loads, num_ranks, num_physical)
    shares = _shares(loads, copies)
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    _fill(ranks, dict(enumerate(copies)), shares, num_physical // num_ranks)
    _swap(ranks, shares)
    found = _placement(len(loads), [sorted(held) for held in ranks])
    in_order = ExpertPlacement.in_order(len(loads), num_ranks, num_physical - len(loads))
    return min(found, in_order, key=lambda placement: max(rank_loads(placement, loads)))


def with_fewest_moves(wanted: ExpertPlacement, old: ExpertPlacement) -> ExpertPlacement:
    """`wanted` with its ranks, and the slots of each, renumbered so that most experts stay where `old` has them."""
    ranks = range(old.num_ranks)
    kept = [[_in_common(wanted.on_rank(new), old.on_rank(rank)) for new in ranks] for rank in ranks]
    chosen = best_assignment(kept)
    return _placement(old.num_logical, [_in_place(wanted.on_rank(chosen[rank]), old.on_rank(rank)) for rank in ranks])


def _changed(old: ExpertPlacement, loads: Sequence[float], enough: float) -> ExpertPlacement:
    """`old` with other spare copies, then with slots swapped until no rank has more than `enough`, or none helps."""
    copies = _copies(loads, old.num_ranks, old.num_physical)
    shares = _shares(loads, copies)
    ranks = [list(old.on_rank(rank)) for rank in range(old.num_ranks)]
    lacking = {expert: count - len(held) for (expert, count), held in zip(enumerate(copies), old.copies(), strict=True)}
    for expert in range(old.num_logical):
        while lacking[expert] < 0:
            holders = [held for held in ranks if expert in held]
            max(holders, key=lambda held: (held.count(expert), sum(shares[each] for each in held))).remove(expert)
            lacking[expert] += 1
    _fill(ranks, lacking, shares, old.num_local)
    _swap(ranks, shares, enough)
    return _placement(old.num_logical, [_in_place(held, old.on_rank(rank)) for rank, held in enumerate(ranks)])


def _copies(loads: Sequence[float], num_ranks: int, num_physical: int) -> list[int]:
    """How many copies each expert gets; more than one a rank only where all experts have that many."""
    copies = [1] * len(loads)
    for _ in range(num_physical - len(loads)):
        useful = [expert for expert, count in enumerate(copies) if count < num_ranks] or range(len(loads))
        copies[max(useful, key=lambda expert: loads[expert] / copies[expert])] += 1
    return copies


def _shares(loads: Sequence[float], copies: Sequence[int]) -> list[float]:
    return [load / count for load, count in zip(loads, copies, strict=True)]


def _fill(ranks: list[list[int]], lacking: dict[int, int], shares: Sequence[float], room: int) -> None:
    """Give ranks, up to `room` slots each, the copies that are lacking, the heaviest first."""
    sums = [sum(shares[expert] for expert in held) for held in ranks]
    for expert in sorted(lacking, key=lambda expert: -shares[expert]):
        for _ in range(lacking[expert]):
            free = [rank for rank, held in enumerate(ranks) if len(held) < room]
            rank = min(free, key=lambda rank: (expert in ranks[rank], sums[rank]))
            ranks[rank].append(expert)
            sums[rank] += shares[expert]


def _swap(ranks: list[list[int]], shares: Sequence[float], enough: float = 0.0) -> None:
    """Swap slots of the busiest rank with others', the best swap first, while the busier of the two becomes less so."""
    sums = [sum(shares[expert] for expert in held) for held in ranks]
    for _ in range(sum(map(len, ranks))):
        busiest = max(range(len(ranks)), key=lambda rank: sums[rank])
        if sums[busiest] <= enough:
            return
        best = (sums[busiest] * (1 - 1e-9), -1, -1, -1)
        for rank, held in enumerate(ranks):
            for at, mine in enumerate(ranks[busiest]):
                for there, other in enumerate(held):
                    less = shares[mine] - shares[other]
                    best = min(best, (max(sums[busiest] - less, sums[rank] + less), at, rank, there))
        _, at, rank, there = best
        if rank < 0:
            return
        ranks[busiest][at], ranks[rank][there] = ranks[rank][there], ranks[busiest][at]
        for changed in (busiest, rank):
            sums[changed] = sum(shares[expert] for expert in ranks[changed])


def _placement(num_logical: int, ranks: Sequence[Sequence[int]]) -> ExpertPlacement:
    return ExpertPlacement(num_logical, len(ranks), tuple(expert for held in ranks for expert in held))


def _in_common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many slots of `some` need no expert that is not among `others`."""
    held = set(others)
    return sum(expert in held for expert in some)


def _in_place(wanted: Sequence[int], old: Sequence[int]) -> list[int]:
    """`wanted` in the slots that hold it already, and the rest, in order, in those that are left."""
    left = list(wanted)
    slots: list[int | None] = []
    for expert in old:
        stays = expert in left
        slots.append(expert if stays else None)
        if stays:
            left.remove(expert)
    return [left.pop(0) if expert is None else expert for expert in slots]
