"""What adapters add against the torch references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bestiary.engine.decode_input import FixedSlotRows
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.ops import lora as reference
from bestiary.nn.triton import lora

RANKS = {0: 5, 2: 3}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(*shape: int, along: int, seed: int) -> Tensor:
    """Three slots' factors; those of slot 1 are zero, as is what exceeds a slot's rank."""
    made = numbers(3, *shape, seed=seed)
    for slot in range(3):
        held = made[slot].movedim(along, 0)
        held[RANKS.get(slot, 0) :] = 0
    return made


def check(leading: tuple[int, ...], sizes: list[int], dtype: torch.dtype, loose: float, device: str = "cpu") -> None:
    a, b = factors(len(sizes), 5, 150, along=1, seed=0), factors(sum(sizes), 5, along=1, seed=1)
    a, b = (each.to(device, dtype) for each in (a, b))
    rows = SlotRows((torch.arange(leading[0]) % 4 - 1).to(device))
    x = numbers(*leading, 160, seed=2).to(device, dtype)[..., :150]
    before = numbers(*leading, sum(sizes), seed=3).to(device, dtype)
    wanted = reference.add_lora.reference(before.clone(), x, a, b, sizes, rows, RANKS)
    out = before.clone()
    assert lora.add_lora(out, x, a, b, sizes, rows, RANKS) is out
    torch.testing.assert_close(out, wanted, rtol=loose, atol=loose * 40)
    assert torch.equal(out[rows.slots < 0], before[rows.slots < 0])


@pytest.mark.parametrize("leading", [(1,), (6,), (4, 3), (0,)])
@pytest.mark.parametrize("sizes", [[70], [33, 8, 8]])
def test_add_lora(leading: tuple[int, ...], sizes: list[int]) -> None:
    check(leading, sizes, torch.float32, 1e-4)


def test_add_lora_in_half_precision() -> None:
    check((6,), [33, 8], torch.float16, 2e-3)


def test_a_row_does_not_depend_on_the_others() -> None:
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    x, slots = numbers(5, 150, seed=2), torch.tensor([0, 2, 0, -1, 2])
    together = lora.add_lora(torch.zeros(5, 40), x, a, b, [40], SlotRows(slots), RANKS)
    alone = [
        lora.add_lora(torch.zeros(1, 40), x[row : row + 1], a, b, [40], SlotRows(slots[row : row + 1]), RANKS)
        for row in range(5)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_rows_that_the_host_cannot_group() -> None:
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    x, slots = numbers(3, 150, seed=2), torch.tensor([0, -1, 2])
    found = lora.add_lora(torch.ones(3, 40), x, a, b, [40], FixedSlotRows(slots), RANKS)
    assert torch.equal(found, lora.add_lora(torch.ones(3, 40), x, a, b, [40], SlotRows(slots), RANKS))


def test_factors_and_results_that_lie_apart() -> None:
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    x, rows = numbers(3, 150, seed=2), SlotRows(torch.tensor([0, -1, 2]))
    wanted = reference.add_lora.reference(torch.ones(3, 40), x, a, b, [40], rows, RANKS)
    apart_a, apart_b = torch.stack([a, a], 1)[:, 1], torch.stack([b, b], 1)[:, 1]
    for out in (torch.ones(3, 44)[:, :40], torch.ones(40, 3).T):
        found = lora.add_lora(out, x, apart_a, apart_b, [40], rows, RANKS)
        assert found is out
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("leading", [(4,), (2, 3), (0,)])
def test_add_lora_embedding(leading: tuple[int, ...]) -> None:
    a, b = factors(11, 5, along=1, seed=0), factors(70, 5, along=1, seed=1)
    rows = SlotRows(torch.arange(leading[0]) % 4 - 1)
    ids = torch.arange(11).repeat(3)[: torch.Size(leading).numel()].view(leading)
    given = (ids, a, b, rows, RANKS)
    wanted = reference.add_lora_embedding.reference(torch.ones(*leading, 70), *given)
    torch.testing.assert_close(lora.add_lora_embedding(torch.ones(*leading, 70), *given), wanted)


@pytest.mark.gpu
def test_add_lora_on_a_gpu() -> None:
    check((64,), [512, 128, 128], torch.bfloat16, 1e-2, "cuda")
