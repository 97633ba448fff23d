"""The input of a decode step as it is completed on the device, against the torch reference."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import SamplingParams
from bestiary.engine.decode_input import DecodeInput
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.request_state import RequestState
from bestiary.nn.ops.step import place_rows as reference
from bestiary.nn.triton.step import place_rows


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(0, 300), st.integers(0, 200), st.booleans(), st.integers(0, 2**16))
def test_rows(rows: int, changed: int, unknown: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    entries = torch.randperm(320 * 5, generator=generator)[:changed]
    row = torch.where(numbers(0, 2, changed) > 0, entries // 5, -1)
    changes = torch.stack((row, entries % 5, numbers(0, 99, changed)))
    ids, positions, sources = numbers(0, 99, rows), numbers(0, 99, rows), numbers(-1, 7, rows)
    drawn = numbers(100, 200, 7) if unknown else None
    found, wanted = (
        (ids.clone(), torch.zeros(rows, dtype=torch.int32), torch.zeros(320, 8, dtype=torch.int32)[:, :5])
        for _ in range(2)
    )
    for version, (to, lens, tables) in ((place_rows, found), (reference.reference, wanted)):
        version(to, positions, sources, drawn, lens, tables, changes)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_decode_input_on_a_gpu() -> None:
    """Three steps, the last with a token that the host does not know and more new blocks than changes are sent of."""
    made = DecodeInput(4, 64, 16, torch.device("cuda"), place=place_rows)
    for start, drawn in ((3, None), (30, None), (900, torch.tensor([8, 9], device="cuda"))):
        names = ["a", "b"]
        states = {
            name: RequestState(NewRequest(name, tuple(range(start + (drawn is None))), SamplingParams(), 0))
            for name in names
        }
        for row, state in enumerate(states.values()):
            state.pending = None if drawn is None else (drawn, 1 - row)
        blocks = tuple(range(start // 16 + 1))
        items = tuple(ScheduledItem(name, start, 1, blocks, True) for name in names)
        batch = made.take(StepPlan(0, items), states, {})
        assert batch is not None
        assert batch.input_ids.tolist() == ([start] * 2 if drawn is None else [9, 8])
        assert batch.positions.tolist() == [start] * 2
        assert batch.attention.seq_lens.tolist() == [start + 1] * 2
        assert batch.attention.slot_mapping.tolist() == [start] * 2
        assert batch.attention.block_tables[:, : len(blocks)].tolist() == [list(blocks)] * 2
