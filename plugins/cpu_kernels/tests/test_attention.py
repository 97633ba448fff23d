"""Attention over the paged cache against core's reference backend, and against itself in other batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ABLE, normal, pool
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.reference import ReferenceBackend
from bestiary_cpu import _abi, matrix
from bestiary_cpu.memory import address
from bestiary_cpu.pool import Call

BLOCK = 16
Floats = NDArray[np.float32]
TYPES = {_abi.KV_F32: torch.float32, _abi.KV_F16: torch.float16, _abi.KV_BF16: torch.bfloat16}


@dataclass
class Batch:
    """Sequences of (new tokens, all tokens), their blocks scattered over the cache."""

    lengths: list[tuple[int, int]]
    heads: int = 6
    kv_heads: int = 2
    size: int = 32
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        most = max(total for _, total in self.lengths)
        self.width = -(-most // BLOCK)
        count = len(self.lengths) * self.width
        order = np.random.default_rng(self.seed).permutation(count)
        self.tables = order.reshape(len(self.lengths), self.width).astype(np.int32)
        self.new = [new for new, _ in self.lengths]
        self.start = np.cumsum([0, *self.new]).astype(np.int32)
        self.totals = np.array([total for _, total in self.lengths], np.int32)
        self.query = normal(sum(self.new), self.heads * self.size, seed=self.seed)
        self.cache = normal(count, BLOCK, 2, self.kv_heads, self.size, seed=self.seed + 1)

    def reference(self, cache: torch.Tensor) -> Floats:
        extra = dict(self.extra)
        sinks = extra.pop("sinks", None)
        spec = AttentionSpec(
            num_heads=self.heads, num_kv_heads=self.kv_heads, head_size=self.size, scale=self.size**-0.5,
            has_sinks=sinks is not None, **extra,
        )  # fmt: skip
        metadata = AttentionMetadata(
            torch.from_numpy(self.start), torch.from_numpy(self.totals), torch.from_numpy(self.tables),
            torch.zeros(0, dtype=torch.int64), tuple(self.new), tuple(self.totals.tolist()), max(self.new),
            int(self.totals.max()), 0, BLOCK,
        )  # fmt: skip
        query = torch.from_numpy(self.query).view(-1, self.heads, self.size)
        found = ReferenceBackend().compute(
            query, None, None, cache, metadata, spec, None if sinks is None else torch.tensor(sinks)
        )
        return found.reshape(len(query), -1).numpy()

    def native(self, kind: int, cache: Any, isa: str | None = None, threads: int = 2, split: bool = False) -> Floats:
        rows, width = self.query.shape
        out, extra = np.full((rows, width), np.nan, np.float32), self.extra
        slopes = np.array(extra["alibi_slopes"], np.float32) if "alibi_slopes" in extra else None
        sinks = np.array(extra["sinks"], np.float32) if "sinks" in extra else None
        step = pool(threads, isa).library.native.bst_attention_split()
        splits = -(-int(self.totals.max()) // step)
        partial = np.full((rows, self.heads, splits, self.size + 2), np.nan, np.float32) if split else None
        args = _abi.AttentionArgs(
            query=address(self.query), query_stride=width, kv_cache=cache, query_start=address(self.start),
            seq_lens=address(self.totals), block_tables=address(self.tables),
            table_stride=self.width, rows=rows, sequences=len(self.lengths), kv_type=kind, block_size=BLOCK,
            heads=self.heads, kv_heads=self.kv_heads, head_size=self.size,
            window=extra.get("sliding_window", 0), scale=self.size**-0.5, soft_cap=extra.get("logits_soft_cap", 0.0),
            alibi=address(slopes), sinks=address(sinks), partial=address(partial), most_splits=splits,
            out=address(out), out_stride=width,
        )  # fmt: skip
        calls = [Call("bst_attention", args)] + ([Call("bst_attention_join", args)] if split else [])
        pool(threads, isa).run(calls)
        return out


EXTRAS = {
    "plain": {},
    "window": {"sliding_window": 37},
    "soft cap": {"logits_soft_cap": 2.0},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.125, 0.06, 0.03, 0.01)},
    "sinks": {"sinks": [0.5, -1.0, 2.0, 0.0, 3.0, -4.0]},
}
MIXED = [(1, 300), (1, 1), (23, 23), (7, 530), (1, 256), (1, 257), (40, 600)]


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("kind", TYPES, ids=["f32", "f16", "bf16"])
def test_decode_and_prefill_are_those_of_the_reference(kind: int, extra: dict[str, Any]) -> None:
    batch = Batch(MIXED, extra=extra)
    cache = torch.from_numpy(batch.cache).to(TYPES[kind])
    want = batch.reference(cache.float())
    for isa in ABLE:
        got = batch.native(kind, cache.data_ptr(), isa=isa)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 600)), min_size=1, max_size=4),
    group=st.sampled_from([1, 3, 4, 17, 20]), kv_heads=st.integers(1, 3), size=st.sampled_from([16, 64, 80]),
    window=st.sampled_from([0, 1, 100, 700]),
)  # fmt: skip
def test_any_shape(lengths: list[tuple[int, int]], group: int, kv_heads: int, size: int, window: int) -> None:
    extra = {"sliding_window": window} if window else {}
    batch = Batch([(new, new + old) for new, old in lengths], group * kv_heads, kv_heads, size, extra)
    cache = torch.from_numpy(batch.cache)
    got = batch.native(_abi.KV_F32, cache.data_ptr())
    np.testing.assert_allclose(got, batch.reference(cache), rtol=2e-5, atol=3e-6)
    assert np.array_equal(got, batch.native(_abi.KV_F32, cache.data_ptr(), split=True))


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_a_token_is_the_same_in_every_batch_on_every_thread_and_instruction_set(extra: dict[str, Any]) -> None:
    """Prefilled at once, in chunks, token by token, split among threads or not: the same bits."""
    total = 530
    whole = Batch([(total, total)], extra=extra)
    cache = torch.from_numpy(whole.cache).half()
    want = whole.native(_abi.KV_F16, cache.data_ptr())
    for isa in ABLE:
        for threads, split in ((1, True), (3, False)):
            assert np.array_equal(whole.native(_abi.KV_F16, cache.data_ptr(), isa, threads, split), want)
    for at, count in ((0, 1), (255, 3), (256, 1), (300, 200), (529, 1)):
        part = Batch([(count, at + count)], extra=extra)
        part.tables, part.width = whole.tables, whole.width
        part.query = whole.query[at : at + count].copy()
        assert np.array_equal(part.native(_abi.KV_F16, cache.data_ptr(), split=True), want[at : at + count]), (
            at,
            count,
        )


def written(batch: Batch, kind: int, cache: Any) -> None:
    """The batch's keys and values, put into a cache by the kernel that does so in a model."""
    pairs = batch.cache.reshape(-1, 2, batch.kv_heads * batch.size)
    key, value = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    slots = np.arange(len(pairs))
    args = _abi.RopeArgs(
        key=address(key), key_stride=key.shape[1], value=address(value), value_stride=key.shape[1],
        slots=address(slots), rows=len(pairs), heads=batch.heads, kv_heads=batch.kv_heads, head_size=batch.size,
        kv_type=kind, block_size=BLOCK, kv_cache=cache,
    )  # fmt: skip
    pool().run([Call("bst_rope", args)])


@pytest.mark.parametrize("kind", TYPES, ids=["f32", "f16", "bf16"])
def test_caches_are_written_as_torch_rounds(kind: int) -> None:
    batch = Batch([(1, 40)])
    batch.cache[0, 0, 0, 0, :6] = [1e-7, 65519.0, 65520.0, -np.inf, np.nan, -3e-5]
    cache = torch.zeros(batch.cache.shape, dtype=TYPES[kind])
    written(batch, kind, cache.data_ptr())
    torch.testing.assert_close(cache, torch.from_numpy(batch.cache).to(TYPES[kind]), rtol=0, atol=0, equal_nan=True)


def int8_cache(batch: Batch) -> tuple[NDArray[np.int8], NDArray[np.int8], Floats]:
    """The cache as bytes, one row a block; its numbers ``[block, offset, 2, kv_heads, size]``, and a scale for each."""
    blocks, size = len(batch.cache), batch.cache[0].size
    cache = np.zeros((blocks, size + 4 * (size // batch.size)), np.int8)
    written(batch, _abi.KV_INT8, address(cache))
    scales = cache[:, size:].copy().view(np.float32).reshape(blocks, 2, batch.kv_heads, BLOCK)
    return cache, cache[:, :size].reshape(batch.cache.shape), scales.transpose(0, 3, 1, 2)


def attended(batch: Batch, pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Causal attention in fp64."""
    rows = []
    for sequence, (new, total) in enumerate(batch.lengths):
        flat = pairs[batch.tables[sequence]].reshape(-1, 2, batch.kv_heads, batch.size)
        for position in range(total - new, total):
            query = batch.query[len(rows)].astype(np.float64).reshape(batch.kv_heads, -1, batch.size)
            keys, values = flat[: position + 1, 0], flat[: position + 1, 1]
            scores = np.exp(np.einsum("hgc,khc->hgk", query, keys) * batch.size**-0.5)
            weights = scores / scores.sum(-1, keepdims=True)
            rows.append(np.einsum("hgk,khc->hgc", weights, values).ravel())
    return np.stack(rows)


def test_an_int8_cache_is_a_code_for_each_number_and_a_scale_for_each_row() -> None:
    batch = Batch([(1, 40)])
    batch.cache[0, 0, 0, 0] = 0
    batch.cache[0, 0, 1, 1, 3], batch.cache[0, 1, 0, 1, 5] = np.nan, np.inf
    _, codes, scales = int8_cache(batch)
    most = np.abs(batch.cache).max(-1)
    good = np.isfinite(most)
    assert np.count_nonzero(~good) == 2 and np.isnan(scales[~good]).all()
    assert np.array_equal(scales[good], most[good] / np.float32(127))
    rows, factors = batch.cache[good], np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))[good]
    assert np.array_equal(codes[good], np.rint(rows * factors[:, None]).astype(np.int8))


def test_attention_over_an_int8_cache_is_that_over_what_it_stands_for() -> None:
    batch = Batch(MIXED)
    cache, codes, scales = int8_cache(batch)
    want = attended(batch, codes.astype(np.float64) * scales[..., None])
    for isa in ABLE:
        for split in (False, True):
            got = batch.native(_abi.KV_INT8, address(cache), isa, split=split)
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)
    exact = attended(batch, batch.cache.astype(np.float64))
    assert np.abs(got - exact).max() < 0.02


def test_an_int8_cache_moves_block_by_block() -> None:
    batch = Batch(MIXED)
    cache, _, _ = int8_cache(batch)
    want = batch.native(_abi.KV_INT8, address(cache))
    order = np.random.default_rng(5).permutation(len(cache))
    moved = np.empty_like(cache)
    moved[order] = cache
    batch.tables = order[batch.tables].astype(np.int32)
    assert np.array_equal(batch.native(_abi.KV_INT8, address(moved)), want)


def test_keys_that_a_query_does_not_see_have_no_part_in_it() -> None:
    """Not even as 0 × NaN: the later tokens of a chunk, and what is left behind in a block."""
    batch = Batch([(40, 100)])
    want = batch.native(_abi.KV_F32, address(batch.cache))
    for position in range(80, batch.width * BLOCK):
        batch.cache[batch.tables[0, position // BLOCK], position % BLOCK] = np.nan
    got = batch.native(_abi.KV_F32, address(batch.cache))
    assert np.array_equal(got[:20], want[:20]) and np.isnan(got[20:]).all()


@pytest.mark.parametrize("kind", [GgmlType.Q8_0, GgmlType.F32], ids=lambda kind: kind.name)
def test_results_are_prepared_as_if_afterwards(kind: GgmlType) -> None:
    batch = Batch(MIXED)
    want = matrix.prepare(pool(), kind, batch.native(_abi.KV_F32, address(batch.cache)))
    room = np.zeros_like(want.data)
    args = _abi.AttentionArgs(
        query=address(batch.query), query_stride=batch.query.shape[1], kv_cache=address(batch.cache),
        query_start=address(batch.start), seq_lens=address(batch.totals), block_tables=address(batch.tables),
        table_stride=batch.width, rows=len(batch.query), sequences=len(batch.lengths), kv_type=_abi.KV_F32,
        block_size=BLOCK, heads=6, kv_heads=2, head_size=32, scale=32**-0.5,
        quantized=want.quantized, prepared=address(room),
    )  # fmt: skip
    pool().run([Call("bst_attention", args)])
    assert np.array_equal(room, want.data)
