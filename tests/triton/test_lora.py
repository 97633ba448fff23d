"""What adapters add against the torch references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.engine.decode_input import FixedSlotRows
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.ops import lora as reference
from bestiary.nn.ops.registry import Target
from bestiary.nn.triton import lora, lora_tiles, offers

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


# --- tiles ----------------------------------------------------------------------------------------------------------


def laid(runs: list[tuple[int, int]], device: str = "cpu") -> SlotRows:
    """Rows of runs of (slot, how many), as the runner makes them."""
    rows = SlotRows.of([slot for slot, count in runs for _ in range(count)], torch.device(device))
    assert rows is not None
    return rows


def explicit(x: Tensor, a: Tensor, b: Tensor, sizes: list[int], slots: Tensor) -> Tensor:
    """What PEFT computes, a row at a time in fp64: every part's ``B (A x)``."""
    made = []
    for row, slot in zip(x.double(), slots.tolist(), strict=True):
        parts = zip(a[slot].double(), torch.split(b[slot].double(), sizes), strict=True)
        made.append(torch.cat([part @ (first @ row) for first, part in parts]) * (slot >= 0))
    return torch.stack(made)


def check_tiles(
    runs: list[tuple[int, int]], sizes: list[int], width: int, rank: int, dtype: torch.dtype, loose: float,
    device: str = "cpu",
) -> None:  # fmt: skip
    rows = laid(runs, device)
    ranks = {0: rank, 2: max(1, rank - 2)}
    room = rank + 18 if rank < 16 else rank + 1  # more than is read, and less than whole 16s
    a, b = numbers(3, len(sizes), room, width, seed=0) / width**0.5, numbers(3, sum(sizes), room, seed=1)
    for slot in range(3):
        a[slot, :, ranks.get(slot, 0) :], b[slot, :, ranks.get(slot, 0) :] = 0, 0
    a, b = (each.to(device, dtype) for each in (a, b))
    x = numbers(len(rows), width + 8, seed=2).to(device, dtype)[:, :width]
    before = numbers(len(rows), sum(sizes), seed=3).to(device, dtype)
    named = rows.within(ranks)
    assert named is not None
    out = before.clone()
    assert lora_tiles.add_lora(out, x, a, b, sizes, named, ranks) is out
    wanted = reference.add_lora.reference(before.clone(), x, a, b, sizes, named, ranks)
    torch.testing.assert_close(out, wanted, rtol=loose, atol=loose)
    told = explicit(x.cpu(), a.cpu(), b.cpu(), sizes, rows.slots.cpu()) + before.cpu()
    torch.testing.assert_close(out.cpu().double(), told, rtol=2 * loose, atol=2 * loose)
    assert torch.equal(out[rows.slots < 0], before[rows.slots < 0])


@pytest.fixture
def no_row_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_shrink", "_expand"):
        monkeypatch.setattr(lora, name, None)


SHAPES: dict[str, Any] = {
    "runs": st.lists(st.tuples(st.integers(-1, 2), st.sampled_from([1, 2, 15, 16, 40, 70])), max_size=4),
    "sizes": st.sampled_from([[70], [64, 16, 16], [33, 8, 8], [5, 6]]), "width": st.sampled_from([1, 40, 128, 150]),
    "rank": st.sampled_from([1, 3, 8, 16, 40]),
}  # fmt: skip


@pytest.mark.usefixtures("no_row_kernels")
@settings(max_examples=examples(15), deadline=None)
@given(**SHAPES, dtype=st.sampled_from([torch.float32, torch.float16]))
def test_tiles(runs: list[tuple[int, int]], sizes: list[int], width: int, rank: int, dtype: torch.dtype) -> None:
    check_tiles([*runs, (0, 80)], sizes, width, rank, dtype, 1e-4 if dtype is torch.float32 else 4e-3)


@pytest.mark.usefixtures("no_row_kernels")
@pytest.mark.parametrize("height", [16, 32, 64])
def test_tiles_of_every_height(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_tiles, "_height", lambda rows: height)
    check_tiles([(2, 70), (-1, 3), (0, 65), (1, 4), (2, 1)], [40, 24], 150, 16, torch.float16, 4e-3)


@pytest.mark.usefixtures("no_row_kernels")
def test_what_is_between_the_products_is_not_rounded() -> None:
    a, b = (each.half() for each in (factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)))
    x, rows = numbers(80, 150, seed=2).half(), laid([(0, 50), (2, 30)])
    found = lora_tiles.add_lora(torch.zeros(80, 40), x, a, b, [40], rows, RANKS)
    torch.testing.assert_close(found.double(), explicit(x, a, b, [40], rows.slots), rtol=1e-5, atol=1e-4)


def test_heights_follow_the_number_of_rows() -> None:
    assert [lora_tiles._height(rows) for rows in (1, 2048, 2049, 4096, 4097, 8192, 10**6)] == [
        16,
        16,
        32,
        32,
        64,
        64,
        64,
    ]


@pytest.mark.usefixtures("no_row_kernels")
def test_tiles_of_what_lies_apart() -> None:
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    x, rows = numbers(150, 80, seed=2).T, laid([(0, 50), (-1, 10), (2, 20)])
    wanted = reference.add_lora.reference(torch.ones(80, 40), x, a, b, [40], rows, RANKS)
    for apart_a, apart_b in ((torch.stack([a, a], 1)[:, 1], torch.stack([b, b], 1)[:, 1]), (a.mT.clone().mT, b)):
        for out in (torch.ones(80, 44)[:, :40], torch.ones(40, 80).T):
            found = lora_tiles.add_lora(out, x, apart_a, apart_b, [40], rows, RANKS)
            assert found is out
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("no_row_kernels")
def test_tiles_of_an_embedding() -> None:
    a, b = factors(11, 5, along=1, seed=0), factors(70, 5, along=1, seed=1)
    given_ = (torch.arange(90) % 11, a, b, laid([(-1, 4), (2, 40), (0, 41), (1, 5)]), RANKS)
    wanted = reference.add_lora_embedding.reference(torch.ones(90, 70), *given_)
    torch.testing.assert_close(lora_tiles.add_lora_embedding(torch.ones(90, 70), *given_), wanted, rtol=1e-4, atol=1e-4)


def test_picked_rows_of_one_slot_are_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    x, index = numbers(70, 150, seed=2), torch.arange(0, 140, 2)
    alone, mixed = laid([(2, 140)]).pick(index), laid([(2, 139), (0, 1)]).pick(index)
    by_row = lora_tiles.add_lora(torch.ones(70, 40), x, a, b, [40], mixed, RANKS)
    monkeypatch.setattr(lora, "_shrink", None)
    by_tile = lora_tiles.add_lora(torch.ones(70, 40), x, a, b, [40], alone, RANKS)
    torch.testing.assert_close(by_tile, by_row, rtol=1e-4, atol=1e-3)


FEW = [
    ("few rows", laid([(0, 63)]), (63, 150)),
    ("short runs", laid([(0, 3), (2, 3)] * 20), (120, 150)),
    ("rows that share an entry", laid([(0, 70)]), (70, 2, 150)),
    ("rows that the host does not know", FixedSlotRows(torch.zeros(70, dtype=torch.int64)), (70, 150)),
    ("no rows", SlotRows(torch.zeros(0, dtype=torch.int64)), (0, 150)),
]


@pytest.mark.parametrize(("rows", "shape"), [each[1:] for each in FEW], ids=[each[0] for each in FEW])
def test_what_goes_row_by_row(rows: SlotRows, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_tiles, "_shrink_tile", None)
    monkeypatch.setattr(lora_tiles, "_expand_tile", None)
    a, b = factors(1, 5, 150, along=1, seed=0), factors(40, 5, along=1, seed=1)
    given_ = (numbers(*shape, seed=2), a, b, [40], rows, RANKS)
    found = lora_tiles.add_lora(torch.ones(*shape[:-1], 40), *given_)
    assert torch.equal(found, lora.add_lora(torch.ones(*shape[:-1], 40), *given_))


def test_deterministic_engines_go_row_by_row() -> None:
    target, exact = (Target("cuda", torch.bfloat16, deterministic) for deterministic in (False, True))
    offered = {"add_lora": [offers.ADD_LORA, offers.EXACT_ADD_LORA],
               "add_lora_embedding": [offers.ADD_LORA_EMBEDDING, offers.EXACT_ADD_LORA_EMBEDDING]}  # fmt: skip
    for tiled, by_row in offered.values():
        assert "number of rows" in str(tiled.why_not(exact))
        assert "deterministic" in str(by_row.why_not(target))


@pytest.mark.gpu
def test_add_lora_on_a_gpu() -> None:
    check((64,), [512, 128, 128], torch.bfloat16, 1e-2, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("length", [90, 2000, 9000])
def test_tiles_on_a_gpu(length: int, dtype: torch.dtype) -> None:
    loose = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-3}[dtype]
    check_tiles([(0, length), (-1, 5), (2, length // 2)], [512, 128, 128], 1024, 16, dtype, loose, "cuda")
