"""Every attention backend against dense attention written down once more, over random geometries and page tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.errors import EngineError, UsageError
from bestiary.nn.attention import sdpa
from bestiary.nn.attention.backend import AttentionBackend, AttentionSpec, AttentionType, KVCacheSpec
from bestiary.nn.attention.choice import BACKENDS, choose_backend
from bestiary.nn.attention.metadata import AttentionMetadata

RUN_HERE = sorted(
    name
    for name, each in BACKENDS.items()
    if each.why_not("cpu", AttentionSpec(num_heads=1, num_kv_heads=1, head_size=16, scale=1.0)) is None
)

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
POISON = 1e4


@dataclass
class Case:
    """Sequences as (context, queries), decodes first; `spec` without sinks' values, which `seed` gives."""

    spec: AttentionSpec
    sequences: list[tuple[int, int]]
    block_size: int = 4
    seed: int = 0
    dtype: torch.dtype = torch.float32
    contiguous: bool = False


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much to whatever else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spec: AttentionSpec, sinks: torch.Tensor | None
) -> torch.Tensor:
    """One query row at a time, in fp64."""
    count, length = len(query), len(keys)
    group = spec.num_heads // spec.num_kv_heads
    out = torch.zeros(query.shape, dtype=torch.float64)
    for row in range(count):
        here = length - count + row
        causal = spec.attn_type is AttentionType.DECODER
        visible = [
            there
            for there in range(length)
            if (not causal or there <= here)
            and (spec.sliding_window is None or abs(here - there) < spec.sliding_window)
        ]
        k, v = keys[visible].double(), values[visible].double()
        scores = torch.einsum("hd,lhd->hl", query[row].double(), k.repeat_interleave(group, 1)) * spec.scale
        if spec.logits_soft_cap is not None:
            scores = spec.logits_soft_cap * torch.tanh(scores / spec.logits_soft_cap)
        if spec.alibi_slopes is not None:
            scores = scores + torch.tensor(spec.alibi_slopes)[:, None] * (torch.tensor(visible) - here)
        weights = scores.exp()
        total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks[:, None].double().exp())
        out[row] = torch.einsum("hl,lhd->hd", weights / total, v.repeat_interleave(group, 1))
    return out


@dataclass
class Batch:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    kv_cache: torch.Tensor
    metadata: AttentionMetadata
    sinks: torch.Tensor | None
    expected: torch.Tensor


def batch_of(case: Case, backend: AttentionBackend) -> Batch:
    """Draw whole sequences; put their contexts into scattered pages, the rest of the cache being poison."""
    spec, generator = case.spec, torch.Generator().manual_seed(case.seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    lengths = [context + count for context, count in case.sequences]
    blocks = [-(-length // case.block_size) for length in lengths]
    total = sum(blocks) + 3
    free = torch.arange(total) if case.contiguous else torch.randperm(total, generator=generator)
    cache_spec = KVCacheSpec(num_kv_heads=spec.num_kv_heads, head_size=spec.head_size, dtype=case.dtype)
    cache = torch.full(tuple(backend.cache_shape(cache_spec, total, case.block_size)), POISON, dtype=case.dtype)
    table = torch.zeros(len(lengths), max(blocks) + 1, dtype=torch.int32)
    queries, keys, values, slots, expected = [], [], [], [], []
    sinks = draw(spec.num_heads) if spec.has_sinks else None
    for row, ((context, count), length) in enumerate(zip(case.sequences, lengths, strict=True)):
        mine, free = free[: blocks[row]], free[blocks[row] :]
        table[row, : len(mine)] = mine
        positions = torch.arange(length)
        where = mine[positions // case.block_size] * case.block_size + positions % case.block_size
        q, k, v = draw(count, spec.num_heads, spec.head_size), *draw(2, length, spec.num_kv_heads, spec.head_size)
        if spec.attn_type is AttentionType.DECODER:
            cache.flatten(0, 1)[where[:context]] = torch.stack((k, v), 1)[:context]
        expected.append(dense(q, k, v, spec, sinks))
        queries.append(q), keys.append(k[context:]), values.append(v[context:]), slots.append(where[context:])
    return Batch(
        torch.cat(queries),
        torch.cat(keys),
        torch.cat(values),
        cache,
        metadata_of(case.sequences, table, torch.cat(slots), case.block_size),
        sinks,
        torch.cat(expected),
    )


def metadata_of(
    sequences: Sequence[tuple[int, int]], table: torch.Tensor, slots: torch.Tensor, block_size: int
) -> AttentionMetadata:
    counts = tuple(count for _, count in sequences)
    lengths = tuple(context + count for context, count in sequences)
    decodes = next((i for i, count in enumerate(counts) if count > 1), len(counts))
    return AttentionMetadata(
        query_start=torch.tensor([0, *counts]).cumsum(0).int(),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=table,
        slot_mapping=slots.long(),
        query_lens_host=counts,
        seq_lens_host=lengths,
        max_query_len=max(counts),
        max_seq_len=max(lengths),
        num_decodes=decodes,
        block_size=block_size,
    )


def run(backend: AttentionBackend, batch: Batch, spec: AttentionSpec, fresh: bool = True) -> torch.Tensor:
    key, value = (batch.key, batch.value) if fresh else (None, None)
    return backend.forward(batch.query, key, value, batch.kv_cache, batch.metadata, spec, batch.sinks)


def spec_of(heads: int, kv_heads: int, size: int, **options: Any) -> AttentionSpec:
    return AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_size=size, scale=size**-0.5, **options)


@st.composite
def cases(draw: st.DrawFn, most: int = 14) -> Case:
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3), (3, 3)]))
    heads = kv_heads * group
    slopes = draw(st.none() | st.lists(st.floats(0.01, 1.0), min_size=heads, max_size=heads).map(tuple))
    encoder = draw(st.integers(0, 5)) == 0
    spec = spec_of(
        heads,
        kv_heads,
        draw(st.sampled_from([8, 20, 64, 128])),
        sliding_window=draw(st.none() | st.integers(1, most + 4)),
        logits_soft_cap=draw(st.none() | st.sampled_from([0.5, 30.0])),
        alibi_slopes=slopes,
        has_sinks=draw(st.booleans()),
        attn_type=AttentionType.ENCODER_ONLY if encoder else AttentionType.DECODER,
    )
    lengths = st.integers(0, 0 if encoder else most)
    decodes = draw(st.lists(st.tuples(lengths, st.just(1)), max_size=4))
    others = draw(st.lists(st.tuples(lengths, st.integers(2, most)), min_size=0 if decodes else 1, max_size=2))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    return Case(spec, decodes + others, draw(st.sampled_from([1, 4, 16])), draw(st.integers(0, 9)), dtype)


def check(backend: AttentionBackend, case: Case) -> None:
    batch = batch_of(case, backend)
    out = run(backend, batch, case.spec)
    assert out.dtype is case.dtype
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(out.double(), batch.expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RUN_HERE)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_random_geometries(name: str, case: Case) -> None:
    check(BACKENDS[name], case)


@pytest.mark.full
@pytest.mark.parametrize("name", RUN_HERE)
@settings(max_examples=1000, deadline=None)
@given(case=cases(most=40))
def test_many_random_geometries(name: str, case: Case) -> None:
    check(BACKENDS[name], case)


PLAIN = spec_of(6, 2, 16)
MIXED = [(9, 1), (0, 1), (21, 1), (0, 7), (5, 3), (12, 11)]


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        replace(PLAIN, sliding_window=1),
        replace(PLAIN, sliding_window=6),
        replace(PLAIN, sliding_window=1000),
        replace(PLAIN, logits_soft_cap=0.3),
        replace(PLAIN, has_sinks=True),
        replace(PLAIN, alibi_slopes=(0.5, 0.25, 0.125, 0.5, 0.1, 1.0)),
        replace(PLAIN, alibi_slopes=(0.5, 0.25, 0.125, 0.5, 0.1, 1.0), sliding_window=3, has_sinks=True),
        spec_of(4, 1, 128),
        spec_of(3, 3, 8),
    ],
)
@pytest.mark.parametrize("sequences", [MIXED, [(13, 1)], [(7, 1), (7, 1)], [(0, 19)], [(6, 5)]])
def test_each_feature(name: str, spec: AttentionSpec, sequences: list[tuple[int, int]]) -> None:
    check(BACKENDS[name], Case(spec, sequences))
    check(BACKENDS[name], Case(spec, sequences, contiguous=True))


@pytest.mark.parametrize("window", [None, 5])
def test_long_prefills_go_by_blocks_of_rows(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(sdpa, "_KEPT_MASK_ELEMENTS", 20)
    for options in ({}, {"logits_soft_cap": 2.0}, {"attn_type": AttentionType.ENCODER_ONLY}):
        context = 0 if "attn_type" in options else 6
        check(BACKENDS["torch"], Case(replace(PLAIN, sliding_window=window, **options), [(context, 15)]))


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_shared_cache_is_read_and_not_written(name: str) -> None:
    backend, case = BACKENDS[name], Case(PLAIN, MIXED)
    batch = batch_of(case, backend)
    first = run(backend, batch, PLAIN)
    before = batch.kv_cache.clone()
    batch.metadata.derived.clear()
    again = run(backend, batch, PLAIN, fresh=False)
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.kv_cache, before)


@pytest.mark.parametrize("name", RUN_HERE)
def test_another_sequences_nan_stays_with_it(name: str) -> None:
    """NaN in one sequence's keys, and in every page nobody owns, reaches no other sequence."""
    backend, case = BACKENDS[name], Case(PLAIN, [(9, 1), (2, 1), (21, 1), (0, 7), (5, 3)])
    clean = batch_of(case, backend)
    clean.kv_cache.masked_fill_(clean.kv_cache == POISON, torch.nan)
    clean.key[1] = torch.nan
    out = run(backend, clean, PLAIN)
    assert out[1].isnan().all()
    others = torch.arange(len(out)) != 1
    torch.testing.assert_close(out[others].double(), clean.expected[others], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_cache_of_another_dtype(name: str) -> None:
    backend, case = BACKENDS[name], Case(PLAIN, MIXED)
    batch = batch_of(case, backend)
    batch.kv_cache = batch.kv_cache.bfloat16()
    out = run(backend, batch, PLAIN)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out.double(), batch.expected, rtol=3e-2, atol=3e-2)
    assert not torch.equal(out.double(), batch.expected)


DETERMINISTIC = [
    PLAIN,
    replace(PLAIN, sliding_window=5),
    replace(PLAIN, logits_soft_cap=5.0, has_sinks=True),
    replace(PLAIN, alibi_slopes=(0.5, 0.25, 0.125, 0.5, 0.1, 1.0)),
    spec_of(9, 3, 20),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", DETERMINISTIC)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_deterministic_does_not_depend_on_batch_or_chunks(
    spec: AttentionSpec, dtype: torch.dtype, data: st.DataObject
) -> None:
    """One sequence computed at once, alone; then in random chunks, in company, on other pages: the same bits."""
    backend, length = BACKENDS["deterministic"], 19
    alone = batch_of(Case(spec, [(0, length)], seed=1, dtype=dtype), backend)
    whole = run(backend, alone, spec)
    block_size = data.draw(st.sampled_from([1, 4, 16]))
    blocks = -(-length // block_size)
    order = torch.randperm(3 * blocks, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    tables = torch.stack((order[:blocks], order[blocks : 2 * blocks])).int()
    cache_spec = KVCacheSpec(num_kv_heads=spec.num_kv_heads, head_size=spec.head_size, dtype=dtype)
    cache = torch.zeros(*backend.cache_shape(cache_spec, 3 * blocks, block_size), dtype=dtype)
    start = 0
    while start < length:
        count = data.draw(st.integers(1, length - start))
        guest = data.draw(st.integers(1, length))  # a whole prompt computed beside it
        sequences = [(start, count), (0, guest)]
        order_of = [0, 1] if count == 1 or guest > 1 else [1, 0]
        positions = [torch.arange(a, a + n) for a, n in sequences]
        slots = [tables[i][p // block_size] * block_size + p % block_size for i, p in enumerate(positions)]
        mine = slice(start, start + count)
        parts = [
            tuple(t[mine] for t in (alone.query, alone.key, alone.value)),
            tuple(t[:guest] * 2 for t in (alone.query, alone.key, alone.value)),
        ]
        query, key, value = (torch.cat([parts[i][j] for i in order_of]) for j in range(3))
        ordered = [sequences[i] for i in order_of]
        metadata = metadata_of(ordered, tables[order_of], torch.cat([slots[i] for i in order_of]), block_size)
        out = backend.forward(query, key, value, cache, metadata, spec, alone.sinks)
        here = out[:count] if order_of[0] == 0 else out[guest:]
        assert torch.equal(here, whole[mine])
        start += count


class Picky:
    """A backend of an installed package."""

    name = "picky"

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        return "head size 16 only" if spec.head_size != 16 else None


def test_choice() -> None:
    picky: Any = Picky()
    assert choose_backend(None, "cpu", [PLAIN]).name == "torch"
    assert choose_backend(None, "cpu", [PLAIN], dict(sorted(BACKENDS.items()))).name == "torch"
    assert choose_backend("deterministic", "cpu", [PLAIN]).name == "deterministic"
    assert choose_backend(None, "cpu", [PLAIN], {"picky": picky}) is picky
    assert choose_backend(None, "cpu", [PLAIN, spec_of(2, 2, 8)], {"picky": picky}).name == "torch"
    with pytest.raises(
        UsageError, match=r"attention_backend(?s:.)*deterministic, flashinfer, reference, torch, .*varlen"
    ):
        choose_backend("flash", "cpu", [PLAIN])
    with pytest.raises(UsageError, match="picky: head size 16 only"):
        choose_backend("picky", "cpu", [spec_of(2, 2, 8)], {"picky": picky})
    cross = replace(PLAIN, attn_type=AttentionType.ENCODER_DECODER, sliding_window=4)
    with pytest.raises(UsageError, match=r"torch: .*cross(?s:.)*reference: .*cross"):
        choose_backend(None, "cpu", [PLAIN, cross])


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize("options", [{}, {"has_sinks": True}, {"logits_soft_cap": 0.4}])
@pytest.mark.parametrize("queries", [[1, 1], [1, 5], [9], [3, 12, 1]])
def test_cross_attention_sees_all_of_the_encoder(name: str, options: dict[str, Any], queries: list[int]) -> None:
    """A first step that brings the encoder's keys and values, and a later one that finds them in the cache."""
    backend, generator = BACKENDS[name], torch.Generator().manual_seed(sum(queries))
    spec, block = replace(PLAIN, attn_type=AttentionType.ENCODER_DECODER, **options), 4
    lengths = [3 + 5 * row for row in range(len(queries))]
    table = torch.randperm(6 * len(queries), generator=generator).view(len(queries), 6).int()
    slots = [table[row][torch.arange(n) // block] * block + torch.arange(n) % block for row, n in enumerate(lengths)]
    encoder = metadata_of([(0, n) for n in lengths], table, torch.cat(slots), block)
    cached = metadata_of([(n, 0) for n in lengths], table, torch.empty(0), block)
    shape = backend.cache_shape(KVCacheSpec(num_kv_heads=2, head_size=16, dtype=torch.float32), table.numel(), block)
    cache, sinks = torch.full(tuple(shape), POISON), torch.randn(6, generator=generator) if spec.has_sinks else None
    key, value = torch.randn(2, sum(lengths), 2, 16, generator=generator)
    for step, source in enumerate((encoder, cached)):
        decoder = metadata_of([(step * 7, count) for count in queries], table, torch.empty(0), block)
        query = torch.randn(sum(queries), 6, 16, generator=generator)
        given = (key, value) if step == 0 else (None, None)
        out = backend.forward(query, *given, cache, replace(decoder, encoder=source), spec, sinks)
        parts = zip(query.split(queries), key.split(lengths), value.split(lengths), strict=True)
        expected = torch.cat([dense(q, k, v, spec, sinks) for q, k, v in parts])
        torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(EngineError, match="needs an encoder's tokens"):
        backend.forward(query, None, None, cache, decoder, spec, sinks)


@pytest.mark.parametrize("name", RUN_HERE)
def test_an_encoder_needs_its_keys(name: str) -> None:
    spec = replace(PLAIN, attn_type=AttentionType.ENCODER)
    batch = batch_of(Case(spec, [(0, 3)]), BACKENDS[name])
    with pytest.raises(EngineError, match="keys and values"):
        run(BACKENDS[name], batch, spec, fresh=False)
