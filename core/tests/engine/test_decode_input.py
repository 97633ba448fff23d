"""A decode step's input on a device of its own memory is what the host wrote, step after step."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import SamplingParams
from bestiary.engine.decode_input import DecodeInput
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.request_state import RequestState

ROWS, BLOCKS, SIZE = 6, 8, 4
REQUEST = st.tuples(st.integers(0, 9), st.integers(0, 30))
PLAN = st.lists(REQUEST, min_size=1, max_size=ROWS, unique_by=lambda each: each[0])
PLANS = st.lists(PLAN, min_size=1, max_size=6)
"""Of each step, its requests and how long each is by then."""


def _items(plan: list[tuple[int, int]]) -> tuple[ScheduledItem, ...]:
    """Blocks depend on the request, so that a row that changes hands has other ones."""
    return tuple(
        ScheduledItem(str(name), start, 1, tuple(7 * name + at for at in range(start // SIZE + 1)), True)
        for name, start in plan
    )


@settings(max_examples=60, deadline=None)
@given(PLANS, st.booleans())
def test_both_memories_say_the_same(plans: list[list[tuple[int, int]]], unknown: bool) -> None:
    device = torch.device("cpu")
    one, other = (
        DecodeInput(ROWS, BLOCKS, SIZE, device, lambda rows: -(-rows // 4) * 4, 99, 5, apart=apart)
        for apart in (False, True)
    )
    for number, plan in enumerate(plans):
        states = {
            str(name): RequestState(NewRequest(str(name), tuple(range(start + (not unknown))), SamplingParams(), 0))
            for name, start in plan
        }
        drawn = torch.arange(100, 100 + len(plan))
        for row, state in enumerate(states.values()):
            state.pending = (drawn, len(plan) - 1 - row) if unknown else None
        batches = [each.take(StepPlan(number, _items(plan)), states, {}) for each in (one, other)]
        first, second = (each for each in batches if each is not None)
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first.positions, second.positions)
        if unknown:
            assert second.input_ids[: len(plan)].tolist() == list(range(99 + len(plan), 99, -1))
        assert second.attention.seq_lens.tolist()[: len(plan)] == [start + 1 for _, start in plan]
        for name in ("seq_lens", "slot_mapping", "prompt_lens", "state_read", "state_write", "query_start"):
            assert torch.equal(getattr(first.attention, name), getattr(second.attention, name)), name
        for row, item in enumerate(_items(plan)):
            assert tuple(second.attention.block_tables[row, : len(item.block_ids)].tolist()) == item.block_ids
        assert second.attention.block_tables[len(plan) :, 0].eq(99).all()
