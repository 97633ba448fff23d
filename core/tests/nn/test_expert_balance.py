"""Placements of experts after load: complete, deterministic, near the best there is, and little moves."""

from collections import Counter
from itertools import combinations_with_replacement, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.moe.assignment import best_assignment
from bestiary.nn.moe.balance import SLACK, balanced, imbalance, rank_loads, rebalanced, with_fewest_moves
from bestiary.nn.moe.load import ExpertLoad
from bestiary.nn.moe.moving import moves
from bestiary.nn.moe.placement import ExpertPlacement

LOADS = st.integers(0, 1000) | st.sampled_from([0, 1, 10**9])


@st.composite
def cases(draw, experts=12, ranks=5, spare=2):
    """(loads, ranks, physical experts)."""
    count, num_ranks = draw(st.integers(1, experts)), draw(st.integers(1, ranks))
    local = -(-count // num_ranks) + draw(st.integers(0, spare))
    return draw(st.lists(LOADS, min_size=count, max_size=count)), num_ranks, num_ranks * local


@st.composite
def changes(draw):
    """(loads, any placement)."""
    loads, num_ranks, num_physical = draw(cases())
    free = draw(st.lists(st.integers(0, len(loads) - 1), min_size=num_physical, max_size=num_physical))
    order = draw(st.permutations([*range(len(loads)), *free[len(loads) :]]))
    return loads, ExpertPlacement(len(loads), num_ranks, tuple(order))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_never_worse_than_in_order(case):
    loads, num_ranks, num_physical = case
    found = balanced(loads, num_ranks, num_physical)
    assert (found.num_ranks, found.num_physical, found.num_logical) == (num_ranks, num_physical, len(loads))
    assert found == balanced(list(loads), num_ranks, num_physical)
    in_order = ExpertPlacement.in_order(len(loads), num_ranks, num_physical - len(loads))
    assert max(rank_loads(found, loads)) <= max(rank_loads(in_order, loads))
    assert sum(rank_loads(found, loads)) == pytest.approx(sum(loads))
    assert imbalance(found, loads) >= 1 - 1e-9


@given(cases(experts=4, ranks=3, spare=1))
@settings(max_examples=80, deadline=None)
def test_within_four_thirds_of_the_best(case):
    loads, num_ranks, num_physical = case
    found = max(rank_loads(balanced(loads, num_ranks, num_physical), loads))
    assert found <= best_of_all(loads, num_ranks, num_physical // num_ranks) * (4 / 3 + 1e-9)


def best_of_all(loads, num_ranks, num_local):
    best = float("inf")
    for ranks in combinations_with_replacement(combinations_with_replacement(range(len(loads)), num_local), num_ranks):
        copies = Counter(expert for held in ranks for expert in held)
        if len(copies) == len(loads):
            best = min(best, max(sum(loads[each] / copies[each] for each in held) for held in ranks))
    return best


@given(changes())
@settings(max_examples=150, deadline=None)
def test_changes_come_as_near_as_a_fresh_start_and_keep_what_they_can(case):
    loads, old = case
    new = rebalanced(old, loads)
    assert new == rebalanced(old, loads)
    assert (new.num_ranks, new.num_physical) == (old.num_ranks, old.num_physical)
    fresh = balanced(loads, old.num_ranks, old.num_physical)
    assert max(rank_loads(new, loads)) <= max(rank_loads(fresh, loads)) * (1 + SLACK)
    for rank in range(old.num_ranks):
        before, after = old.on_rank(rank), new.on_rank(rank)
        kept = (Counter(before) & Counter(after)).total()
        assert sum(one == other for one, other in zip(before, after, strict=True)) == kept, "what stays, stays in place"


@given(changes(), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_placement_that_only_numbers_otherwise_moves_nothing(case, random):
    _, old = case
    held = [random.sample(list(old.on_rank(rank)), old.num_local) for rank in range(old.num_ranks)]
    random.shuffle(held)
    shuffled = ExpertPlacement(old.num_logical, old.num_ranks, tuple(expert for each in held for expert in each))
    assert not any(move.source != move.rank for move in moves(old, with_fewest_moves(shuffled, old)))


def test_nothing_moves_where_loads_are_even_or_unknown():
    old = ExpertPlacement.in_order(6, 2, 2)
    for loads in ([0] * 6, [8, 8, 4, 4, 4, 4]):
        assert rebalanced(old, loads) == old
    assert imbalance(old, [0] * 6) == 1


def test_a_heavy_expert_gets_the_copies():
    old = ExpertPlacement.in_order(8, 4, 4)
    loads = [1, 1, 1, 1, 1, 1, 1, 100]
    new = rebalanced(old, loads)
    assert imbalance(old, loads) > 3.5 and imbalance(new, loads) < 1.1
    assert {physical // new.num_local for physical in new.copies()[7]} == {0, 1, 2, 3}
    assert sum(move.source != move.rank for move in moves(old, new)) <= 5


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n),
                                                    min_size=n, max_size=n)))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_assignments_are_the_best(gains):
    def gained(chosen):
        return sum(row[thing] for row, thing in zip(gains, chosen, strict=True))

    found = best_assignment(gains)
    assert sorted(found) == list(range(len(gains)))
    assert gained(found) == max(map(gained, permutations(range(len(gains)))))


@given(changes(), changes())
@settings(max_examples=150, deadline=None)
def test_moves_lead_from_one_placement_to_the_other_and_send_each_expert_once(case, other):
    _, old = case
    _, new = other
    if (old.num_logical, old.num_ranks, old.num_local) != (new.num_logical, new.num_ranks, new.num_local):
        new = with_fewest_moves(ExpertPlacement(old.num_logical, old.num_ranks, old.physical_to_logical[::-1]), old)
    ranks = [list(old.on_rank(rank)) for rank in range(old.num_ranks)]
    sent = Counter()
    for move in moves(old, new):
        expert = old.on_rank(move.source)[move.source_slot]
        sent[move.rank, expert] += 1
        assert move.source == move.rank or expert not in old.on_rank(move.rank)
        for slot in move.slots:
            ranks[move.rank][slot] = expert
    assert ranks == [list(new.on_rank(rank)) for rank in range(new.num_ranks)]
    assert set(sent.values()) <= {1}


def test_loads_of_a_window():
    load = ExpertLoad(4, 3, torch.device("cpu"))
    for step in range(5):
        load.begin_step()
        load.count(torch.tensor([[step % 4, 3], [3, step % 4]]))
        load.count(torch.empty(0, 2, dtype=torch.int64))
    assert load.total().tolist() == [2, 0, 2, 8]  # steps 2, 3 and 4
    assert load.total().dtype is torch.int64
