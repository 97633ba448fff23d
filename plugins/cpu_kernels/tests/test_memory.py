"""Memory of weights and of recorded steps: where arrays lie, and when their places are used again."""

from __future__ import annotations

import gc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary_cpu.arena import Arena
from bestiary_cpu.memory import Slabs, address

MIB = 1 << 20


def test_weights_lie_one_after_another() -> None:
    slabs = Slabs()
    first, second = slabs.take(100), slabs.take(MIB)
    assert address(second) == address(first) + 128 and address(first) % 64 == 0
    assert not first.any() and not second.any()
    large = slabs.take(65 * MIB)
    third = slabs.take(64)
    assert len(large) >= 65 * MIB and address(third) == address(second) + MIB


def test_a_slab_goes_with_its_last_array() -> None:
    slabs = Slabs()
    first, second = slabs.take(MIB), slabs.take(MIB)
    first[:] = 7
    at = address(first)
    del first
    gc.collect()
    second[:] = 1  # the memory is still there
    assert address(slabs.take(MIB)) == at + 2 * MIB
    del second
    gc.collect()
    assert slabs._slab() is None
    assert not slabs.take(MIB).any()


def test_a_place_returns_with_the_last_tensor_that_looks_at_it() -> None:
    arena = Arena()
    whole = arena.empty((4, 16))
    at, row = whole.data_ptr(), whole[2]
    assert arena.owns(at) and not arena.owns(row.new_empty(3).data_ptr())
    del whole
    other = arena.empty((4, 16))
    assert other.data_ptr() != at
    del row, other
    assert arena.empty((4, 16)).data_ptr() == at


def test_what_lasts_is_not_held() -> None:
    arena = Arena()
    made = arena.empty((3,), torch.int64)
    made.copy_(torch.tensor([1, 2, 3]))
    lasting = arena.lasting(made)
    assert lasting.tolist() == [1, 2, 3] and lasting.data_ptr() == made.data_ptr()
    del made
    assert arena.empty((3,), torch.int64).data_ptr() == lasting.data_ptr()
    mine = torch.ones(2)
    assert arena.lasting(mine) is mine


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 7)), min_size=1, max_size=60))
def test_no_two_tensors_share_a_byte(program: list[tuple[int, int]]) -> None:
    """Allocate, write one's own number everywhere, let some go: what is left still holds its own."""
    arena, held = Arena(), {}
    for number, (size, slot) in enumerate(program):
        made = arena.empty((size,))
        made.fill_(float(number))
        held[slot] = (number, made)
        assert made.data_ptr() % 64 == 0
        assert all(bool((tensor == float(owner)).all()) for owner, tensor in held.values())
    grown = arena.nbytes
    held.clear()
    del made
    assert len(arena._free) == len(arena._ends), "all is free again, in one piece a chunk"
    assert grown == arena.nbytes == sum(np.diff([[at, end] for at, end in arena._ends.items()]))
