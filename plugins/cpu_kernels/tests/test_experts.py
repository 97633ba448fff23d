"""Mixtures of experts against core's torch references, and against themselves in other batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from kernel_cases import ABLE, QUANTIZED, blocks, decoded, normal, pool
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops import moe
from bestiary_cpu import _abi, matrix
from bestiary_cpu.memory import address
from bestiary_cpu.pool import Call, Pool

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
HIDDEN, WIDTH, EXPERTS = 96, 160, 6


def topk(
    logits: Floats, k: int, renormalize: bool, isa: str = ABLE[-1], threads: int = 2, **more: object
) -> tuple[Floats, Ints]:
    weights, ids = np.empty((len(logits), k), np.float32), np.empty((len(logits), k), np.int64)
    fields = {name: address(value) if isinstance(value, np.ndarray) else value for name, value in more.items()}
    args = _abi.TopkArgs(
        address(logits), logits.shape[1], len(logits), logits.shape[1], k, renormalize=renormalize,
        weights=address(weights), ids=address(ids), **fields,
    )  # fmt: skip
    pool(threads, isa).run([Call("bst_topk", args)])
    return weights, ids


@pytest.mark.parametrize("isa", ABLE)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [None, (4, 2)])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_the_best_experts_are_those_of_the_reference(
    renormalize: bool, scoring: str, groups: tuple[int, int] | None, biased: bool, isa: str
) -> None:
    logits, bias = normal(9, 20) * 3, normal(20, seed=1) * 0.2 if biased else None
    got = topk(
        logits, 5, renormalize, isa, scoring=["softmax", "sigmoid"].index(scoring), bias=bias,
        groups=groups[0] if groups else 0, kept_groups=groups[1] if groups else 0,
    )  # fmt: skip
    given = None if bias is None else torch.from_numpy(bias)
    weights, ids = moe.topk_routing(torch.from_numpy(logits), 5, renormalize, scoring, given, *(groups or (None, None)))
    assert np.array_equal(got[1], ids)
    np.testing.assert_allclose(got[0], weights, rtol=1e-5, atol=1e-8)


def test_routing_is_the_same_in_every_batch_on_every_thread_and_instruction_set() -> None:
    logits = normal(9, 61)
    weights, ids = topk(logits, 8, True)
    for isa in ABLE:
        for threads in (1, 3):
            some = topk(logits[4:6], 8, True, isa, threads)
            assert np.array_equal(some[0], weights[4:6]) and np.array_equal(some[1], ids[4:6])


def test_of_equal_experts_the_first_is_chosen() -> None:
    assert topk(np.zeros((1, 32), np.float32), 4, False)[1].tolist() == [[0, 1, 2, 3]]
    logits = np.zeros((1, 32), np.float32)
    logits[0, [9, 30]] = 1
    assert topk(logits, 4, False, scoring=_abi.SIGMOID)[1].tolist() == [[9, 30, 0, 1]]
    grouped = topk(logits * 0, 4, False, scoring=_abi.SIGMOID, bias=np.zeros(32, np.float32), groups=8, kept_groups=1)
    assert grouped[1].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("scoring", [_abi.SOFTMAX, _abi.SIGMOID])
@pytest.mark.parametrize("poison", [[math.nan] * 12, [0, 1, math.nan] * 4])
def test_what_is_not_a_number_gives_weights_that_are_none(poison: list[float], scoring: int) -> None:
    logits = np.array([poison, [1.0] * 12], np.float32)
    for more in ({}, {"groups": 3, "kept_groups": 2}, {"bias": normal(12), "groups": 3, "kept_groups": 2}):
        weights, ids = topk(logits, 4, True, scoring=scoring, **more)
        assert np.isnan(weights[0]).all() and np.isfinite(weights[1]).all()
        assert all(len(set(row)) == 4 and 0 <= min(row) <= max(row) < 12 for row in ids.tolist())


@dataclass(frozen=True)
class Experts:
    """`EXPERTS` experts' matrices, packed one behind the other."""

    kind: GgmlType
    stored: list[NDArray[np.uint8]]  # rows of one expert after those of another
    packed: list[NDArray[np.uint8]]

    @classmethod
    def of(cls, kind: GgmlType, hidden: int, width: int, pool: Pool) -> Experts:
        shapes = ((2 * width, hidden), (hidden, width))
        stored = [blocks(kind, EXPERTS * rows, columns, seed) for seed, (rows, columns) in enumerate(shapes)]
        packed = []
        for rows, (each, columns) in zip(stored, shapes, strict=True):
            parts = np.split(rows, EXPERTS)
            assert len(parts[0]) == each
            packed.append(np.concatenate([matrix.pack(pool, kind, part, columns).data for part in parts]))
        return cls(kind, stored, packed)

    def reference(self, x: Floats, weights: Floats, slots: Ints) -> Floats:
        first, second = (torch.from_numpy(decoded(self.kind, rows).copy()) for rows in self.stored)
        w13, w2 = first.view(EXPERTS, -1, first.shape[1]), second.view(EXPERTS, -1, second.shape[1])
        tensors = (torch.from_numpy(each) for each in (weights, slots))
        return moe.fused_experts(torch.from_numpy(x), w13, w2, *tensors, "silu").numpy()


class Program:
    """The steps of a mixture, recorded once for so many tokens; ``buffers`` holds all that changes."""

    def __init__(self, experts: Experts, tokens: int, k: int, hidden: int, width: int, pool: Pool) -> None:
        pairs, quantized = tokens * k, experts.kind in QUANTIZED
        native = pool.library.native
        self.pool, self.experts = pool, experts
        self.x, self.weights = np.zeros((tokens, hidden), np.float32), np.zeros((tokens, k), np.float32)
        self.slots = np.zeros((tokens, k), np.int64)
        self.offsets, self.places = np.empty(EXPERTS + 1, np.int32), np.empty((tokens, k), np.int32)
        self.rows_of, self.tiles = np.empty(pairs, np.int32), np.empty((pairs, 2), np.int32)
        self.inner, self.outer = np.empty((pairs, 2 * width), np.float32), np.empty((pairs, hidden), np.float32)
        self.first = np.zeros(native.bst_prepared_size(quantized, pairs, hidden), np.uint8)
        self.second = np.zeros(native.bst_prepared_size(quantized, pairs, width), np.uint8)
        self.add, self.out = np.zeros((tokens, hidden), np.float32), np.empty((tokens, hidden), np.float32)
        strides = [len(packed) // EXPERTS for packed in experts.packed]
        w13, w2 = map(address, experts.packed)
        offsets, tiles, rows_of, places = map(address, (self.offsets, self.tiles, self.rows_of, self.places))
        inner, outer, first, second = map(address, (self.inner, self.outer, self.first, self.second))
        kind = experts.kind
        self.calls = [
            Call("bst_route", _abi.RouteArgs(address(self.slots), tokens, k, EXPERTS, offsets, places, rows_of, tiles)),
            Call("bst_prepare", _abi.PrepareArgs(
                quantized, address(self.x), hidden, rows_of, pairs, hidden, first, tiles)),
            Call("bst_expert_matmul", _abi.ExpertMatmulArgs(
                kind, w13, strides[0], first, offsets, EXPERTS, 2 * width, hidden, inner, 2 * width)),
            Call("bst_activation", _abi.ActivationArgs(
                _abi.SILU, 1, inner, 2 * width, pairs, width, None, 0, quantized, second, tiles)),
            Call("bst_expert_matmul", _abi.ExpertMatmulArgs(
                kind, w2, strides[1], second, offsets, EXPERTS, hidden, width, outer, hidden)),
            Call("bst_expert_combine", _abi.ExpertCombineArgs(
                outer, hidden, address(self.weights), places, tokens, k, hidden, address(self.add), hidden,
                address(self.out), hidden)),
        ]  # fmt: skip

    def __call__(self, x: Floats, weights: Floats, slots: Ints) -> Floats:
        self.x[:], self.weights[:], self.slots[:] = x, weights, slots
        self.inner[:], self.outer[:] = np.nan, np.nan
        self.pool.run(self.calls)
        return self.out.copy()


def case(tokens: int, k: int, hidden: int, seed: int = 0) -> tuple[Floats, Floats, Ints]:
    rng = np.random.default_rng(seed)
    slots = np.stack([rng.permutation(EXPERTS)[:k] for _ in range(tokens)]).astype(np.int64)
    slots[rng.random(slots.shape) < 0.2] = -1
    return normal(tokens, hidden, seed=seed), rng.random((tokens, k), np.float32), slots


@pytest.mark.parametrize(
    "kind", [GgmlType.F32, GgmlType.BF16, GgmlType.Q4_1, GgmlType.Q8_0], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_mixtures_are_those_of_the_reference(kind: GgmlType, tokens: int) -> None:
    experts = Experts.of(kind, HIDDEN, WIDTH, pool())
    program = Program(experts, tokens, 3, HIDDEN, WIDTH, pool())
    for seed in (2, 3):  # the same recorded steps with other experts
        given = case(tokens, 3, HIDDEN, seed)
        want = experts.reference(*given)
        error = np.sqrt(np.square(program(*given) - want).mean())
        assert error <= (0.05 if kind in QUANTIZED else 1e-6) * np.sqrt(np.square(want).mean()) + 1e-9


def product_by_hand(experts: Experts, which: int, expert: int, x: Floats, n_out: int) -> Floats:
    part = np.split(experts.packed[which], EXPERTS)[expert].copy()
    return matrix.matmul(pool(), matrix.Matrix(experts.kind, n_out, x.shape[1], part), x)


@pytest.mark.parametrize("kind", matrix.FORMATS, ids=lambda kind: kind.name)
def test_mixtures_are_bit_for_bit_their_products_one_by_one(kind: GgmlType) -> None:
    hidden = width = 256 if kind.block_size == 256 else 96
    experts = Experts.of(kind, hidden, width, pool())
    x, weights, slots = case(13, 4, hidden)
    got = Program(experts, 13, 4, hidden, width, pool())(x, weights, slots)
    want = np.zeros_like(got)
    for token in range(len(x)):
        for expert in range(EXPERTS):
            for weight in weights[token, slots[token] == expert]:
                inner = product_by_hand(experts, 0, expert, x[token : token + 1], 2 * width)
                y = np.empty((1, width), np.float32)
                args = _abi.ActivationArgs(_abi.SILU, 1, address(inner), 2 * width, 1, width, address(y), width)
                pool().run([Call("bst_activation", args)])
                want[token] += product_by_hand(experts, 1, expert, y, hidden)[0] * weight
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", [GgmlType.F16, GgmlType.Q4_1, GgmlType.Q8_0], ids=lambda kind: kind.name)
def test_a_token_is_the_same_in_every_batch_on_every_thread_and_instruction_set(kind: GgmlType) -> None:
    given = case(33, 3, HIDDEN)
    whole = Program(Experts.of(kind, HIDDEN, WIDTH, pool()), 33, 3, HIDDEN, WIDTH, pool())(*given)
    for isa in ABLE:
        for threads in (1, 3):
            here = pool(threads, isa)
            experts = Experts.of(kind, HIDDEN, WIDTH, here)
            for part in (slice(0, 33), slice(7, 8), slice(20, 25)):
                some = tuple(each[part] for each in given)
                got = Program(experts, part.stop - part.start, 3, HIDDEN, WIDTH, here)(*some)
                assert np.array_equal(got, whole[part])


def test_a_token_whose_experts_are_elsewhere_gets_what_is_added_alone() -> None:
    program = Program(Experts.of(GgmlType.Q8_0, HIDDEN, WIDTH, pool()), 2, 3, HIDDEN, WIDTH, pool())
    program.add[:] = normal(2, HIDDEN, seed=5)
    x, weights, _ = case(2, 3, HIDDEN)
    slots = np.array([[-1, 99, -7], [-1, 1, -1]])
    out = program(x, weights, slots)
    assert np.array_equal(out[0], program.add[0]) and not np.array_equal(out[1], program.add[1])
    assert program.offsets.tolist() == [0, 0, 1, 1, 1, 1, 1] and program.places.tolist() == [[-1] * 3, [-1, 0, -1]]
