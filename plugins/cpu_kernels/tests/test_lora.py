"""Adapters against core's torch references, and against themselves in other batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from kernel_cases import ABLE, normal, pool
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.ops import lora
from bestiary_cpu import _abi
from bestiary_cpu.memory import address
from bestiary_cpu.pool import Call

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
RANKS = np.array([8, 0, 3, 21], np.int32)
TYPES = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


@dataclass(frozen=True)
class Factors:
    """Both factors of four slots in one type; what lies beyond a slot's rank is zero."""

    kind: GgmlType
    sizes: tuple[int, ...]
    a: torch.Tensor
    b: torch.Tensor

    @classmethod
    def of(cls, kind: GgmlType, shape: tuple[int, ...], sizes: tuple[int, ...], rank: int = 21) -> Factors:
        """`shape`: what lies between the slots and the rank of the first factor, and what behind: ``(shards, n_in)``
        for a layer, ``(vocabulary,)`` for a table."""
        table = len(shape) == 1
        a = torch.from_numpy(normal(4, *((shape[0], rank) if table else (shape[0], rank, shape[1])), seed=7))
        b = torch.from_numpy(normal(4, sum(sizes), rank, seed=8))
        for slot, used in enumerate(RANKS):
            b[slot, :, used:] = 0
            (a[slot, ..., used:] if table else a[slot, :, used:]).zero_()
        return cls(kind, sizes, a.to(TYPES[kind]), b.to(TYPES[kind]))

    def add(
        self, out: Floats, slots: Ints, isa: str, threads: int, x: Floats | None = None, ids: Ints | None = None
    ) -> Floats:
        """`out`, to which the kernels added theirs."""
        shards, rank = (1 if ids is not None else self.a.shape[1]), self.b.shape[2]
        inner = np.full((len(out), shards * rank), np.nan, np.float32)
        ends = np.cumsum(self.sizes)
        args = _abi.LoraArgs(
            self.kind, self.a.data_ptr(), self.b.data_ptr(), 4, shards, rank,
            self.a.shape[1] if ids is not None else self.a.shape[3], address(ends), address(RANKS), address(slots),
            address(ids), address(x), 0 if x is None else x.shape[1], len(out), address(inner), address(out),
            out.shape[1],
        )  # fmt: skip
        pool(threads, isa).run([Call("bst_lora_shrink", args), Call("bst_lora_expand", args)])
        return out

    def reference(self, out: Floats, slots: Ints, x: Floats | None = None, ids: Ints | None = None) -> Floats:
        rows = SlotRows(torch.from_numpy(np.where(slots < 4, slots, -1)))
        ranks = {slot: int(rank) for slot, rank in enumerate(RANKS) if rank}
        result = torch.from_numpy(out.copy())
        if x is not None:
            return lora.add_lora(result, torch.from_numpy(x), self.a, self.b, self.sizes, rows, ranks).numpy()
        assert ids is not None
        return lora.add_lora_embedding(result, torch.from_numpy(ids), self.a, self.b, rows, ranks).numpy()


SLOTS = np.array([0, 3, -1, 2, 1, 3, 0, 99, 2])


@each_type
@pytest.mark.parametrize("isa", ABLE)
@pytest.mark.parametrize(("n_in", "sizes"), [(64, (48,)), (75, (37, 5, 20))])
def test_rows_get_what_their_adapters_say(n_in: int, sizes: tuple[int, ...], isa: str, kind: GgmlType) -> None:
    factors, x, out = Factors.of(kind, (len(sizes), n_in), sizes), normal(9, n_in), normal(9, sum(sizes), seed=1)
    want = factors.reference(out, SLOTS, x=x)
    got = factors.add(out.copy(), SLOTS, isa, 2, x=x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    without = np.isin(SLOTS, [-1, 1, 99])
    assert np.array_equal(got[without], out[without]) and (got[~without] != out[~without]).any(-1).all()


@each_type
@pytest.mark.parametrize("isa", ABLE)
def test_rows_of_a_table_get_what_their_adapters_say(isa: str, kind: GgmlType) -> None:
    factors, out = Factors.of(kind, (11,), (40,)), normal(9, 40, seed=1)
    ids = np.array([10, 0, 3, 3, 5, 9, 10, 1, 2])
    np.testing.assert_allclose(
        factors.add(out.copy(), SLOTS, isa, 2, ids=ids), factors.reference(out, SLOTS, ids=ids), rtol=1e-5, atol=1e-5
    )


@each_type
def test_a_row_is_the_same_in_every_batch_on_every_thread_and_instruction_set(kind: GgmlType) -> None:
    factors, x, out = Factors.of(kind, (2, 75), (37, 20)), normal(9, 75), normal(9, 57, seed=1)
    whole = factors.add(out.copy(), SLOTS, ABLE[-1], 2, x=x)
    for isa in ABLE:
        for threads in (1, 3):
            assert np.array_equal(factors.add(out.copy(), SLOTS, isa, threads, x=x), whole)
            some = factors.add(out[3:5].copy(), SLOTS[3:5].copy(), isa, threads, x=x[3:5].copy())
            assert np.array_equal(some, whole[3:5])


def test_the_recorded_call_follows_slots_and_ranks() -> None:
    factors, x = Factors.of(GgmlType.F32, (1, 32), (16,), rank=24), normal(2, 32)
    slots, ranks, ends = np.array([0, 2]), np.zeros(4, np.int32), np.array([16])
    inner, out = np.zeros((2, 24), np.float32), np.zeros((2, 16), np.float32)
    args = _abi.LoraArgs(
        GgmlType.F32, factors.a.data_ptr(), factors.b.data_ptr(), 4, 1, 24, 32, address(ends), address(ranks),
        address(slots), None, address(x), 32, 2, address(inner), address(out), 16,
    )  # fmt: skip
    calls = [Call("bst_lora_shrink", args), Call("bst_lora_expand", args)]
    pool().run(calls)
    assert not out.any()
    ranks[:] = RANKS
    slots[:] = [-1, 3]
    pool().run(calls)
    assert not out[0].any() and np.array_equal(out, factors.add(np.zeros_like(out), slots, ABLE[-1], 1, x=x))
