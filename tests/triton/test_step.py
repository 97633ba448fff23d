"""The input of a decode step as it is completed on the device, against the torch reference."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops.step import place_rows as reference
from bestiary.nn.triton.step import place_rows


@settings(max_examples=30, deadline=None)
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
