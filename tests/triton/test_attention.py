"""Attention kernels against the reference backend; and that a row's bits are its own where that is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.nn.attention.backend import AttentionSpec, AttentionType
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.reference import ReferenceBackend
from bestiary.nn.attention.triton import TritonBackend, TritonExactBackend
from bestiary.nn.triton import attend, available

BLOCK = 4
PLAIN = AttentionSpec(num_heads=4, num_kv_heads=2, head_size=16, scale=0.25)
SPECS = {
    "plain": PLAIN,
    "one head a key": replace(PLAIN, num_kv_heads=4),
    "three heads a key": replace(PLAIN, num_heads=6),
    "odd heads": replace(PLAIN, head_size=24),
    "window": replace(PLAIN, sliding_window=5),
    "soft cap": replace(PLAIN, logits_soft_cap=2.0),
    "alibi": replace(PLAIN, alibi_slopes=(0.5, 0.25, 0.125, 0.0625)),
    "sinks": replace(PLAIN, has_sinks=True),
    "everything": replace(
        PLAIN, sliding_window=7, logits_soft_cap=3.0, alibi_slopes=(0.5, 0.25, 0.1, 0.06), has_sinks=True
    ),
}


class Step:
    """Sequences of (context, new tokens), what is earlier lying in the cache; those with one new token come first."""

    def __init__(
        self, spec: AttentionSpec, sequences: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None, seed: int = 0, device: str = "cpu", block: int = BLOCK,
    ) -> None:  # fmt: skip
        make = torch.Generator().manual_seed(seed)
        self.spec, self.sequences = spec, sorted(sequences, key=lambda each: each[1] != 1)
        width = max(-(-sum(each) // block) for each in self.sequences)
        blocks = torch.randperm(width * len(self.sequences), generator=make).view(-1, width)
        heads, size = spec.num_kv_heads, spec.head_size
        tokens = sum(count for _, count in self.sequences)
        rows = torch.randn(tokens, (spec.num_heads + 2 * heads) * size, generator=make).to(dtype)
        cut = [spec.num_heads * size, heads * size, heads * size]
        self.query, self.key, self.value = (
            part.view(tokens, -1, size).to(device) for part in rows.split(cut, dim=1)
        )  # fmt: skip
        cache = torch.randn(blocks.numel(), block, 2, heads, size, generator=make)
        self.cache = cache.to(cache_dtype or dtype).to(device)
        self.sinks = torch.randn(spec.num_heads, generator=make).to(dtype).to(device) if spec.has_sinks else None
        lengths = [sum(each) for each in self.sequences]
        counts = tuple(count for _, count in self.sequences)
        slots = [
            int(blocks[s, at // block]) * block + at % block
            for s, (context, count) in enumerate(self.sequences)
            for at in range(context, context + count)
        ]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        self.metadata = AttentionMetadata(
            query_start=torch.tensor(starts, dtype=torch.int32, device=device),
            seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
            block_tables=blocks.int().to(device),
            slot_mapping=torch.tensor(slots, device=device),
            query_lens_host=counts,
            seq_lens_host=tuple(lengths),
            max_query_len=max(counts),
            max_seq_len=max(lengths),
            num_decodes=sum(count == 1 for count in counts),
            block_size=block,
        )

    def run(self, backend: TritonBackend | ReferenceBackend) -> Tensor:
        return backend.forward(
            self.query, self.key, self.value, self.cache.clone(), self.metadata, self.spec, self.sinks
        )


def check(step: Step, backend: TritonBackend, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(step.run(backend), step.run(ReferenceBackend()), rtol=rtol, atol=atol)


SEQUENCES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=examples(20), deadline=None)
@given(st.sampled_from(sorted(SPECS)), SEQUENCES, st.booleans(), st.integers(0, 9))
def test_like_the_reference(name: str, sequences: list[tuple[int, int]], exact: bool, seed: int) -> None:
    check(Step(SPECS[name], sequences, seed=seed), TritonExactBackend() if exact else TritonBackend())


@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("multiprocessors", [1, 7, 60])
def test_splits_are_joined(name: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "SPLIT", 32)
    monkeypatch.setattr(attend, "LEAST", 32)
    monkeypatch.setattr(attend, "_multiprocessors", lambda device: multiprocessors)
    monkeypatch.setattr(attend, "_AT_ONCE", 2)
    step = Step(SPECS[name], [(150, 1), (31, 1), (0, 1), (70, 3)])
    check(step, TritonBackend())
    check(step, TritonExactBackend())


def test_exact_splits_have_the_same_bits_in_one_program_and_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "SPLIT", 32)
    step, found = Step(PLAIN, [(150, 1), (31, 1), (0, 1)]), []
    for multiprocessors in (1, 60):
        monkeypatch.setattr(attend, "_multiprocessors", lambda device, many=multiprocessors: many)
        found.append(step.run(TritonExactBackend()))
    assert torch.equal(*found)


def test_how_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to fill 132 multiprocessors twice; the longest in parts of 8192 keys; none of fewer than 256."""
    monkeypatch.setattr(attend, "_multiprocessors", lambda device: 132)
    device = torch.device("cpu")
    assert attend.splits_for(8, 8192, device, False) == 32
    assert attend.splits_for(8, 131072, device, False) == 33
    assert attend.splits_for(1024, 8192, device, False) == 1
    assert attend.splits_for(1024, 131072, device, False) == 16
    assert attend.splits_for(1, 512, device, False) == 2
    assert attend.splits_for(8, 8192, device, True) == 16
    assert attend.splits_for(1024, 8192, device, True) == 1


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["plain", "alibi", "soft cap"])
def test_many_whole_tiles(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that every row sees whole come first, without a mask; then those at the edge."""
    monkeypatch.setattr(available, "capability_of", lambda device: capability)
    step = Step(SPECS[name], [(191, 1), (127, 1), (200, 60), (0, 130)], torch.float16)
    check(step, TritonBackend(), rtol=2e-3, atol=2e-3)
    check(step, TritonExactBackend(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("dtype", "cache"), [
    (torch.float16, torch.float16), (torch.float16, torch.float8_e4m3fn), (torch.float16, torch.float8_e5m2),
    (torch.float32, torch.float16),
])  # fmt: skip
def test_number_formats(dtype: torch.dtype, cache: torch.dtype) -> None:
    step = Step(PLAIN, [(9, 1), (5, 4)], dtype, cache)
    loose = 2e-3 if dtype is torch.float16 else 1e-4
    check(step, TritonBackend(), rtol=loose, atol=loose)


@pytest.mark.parametrize("cache", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [1.0, 3e5])
def test_bf16_queries_over_an_fp8_cache(cache: torch.dtype, size: float) -> None:
    """They are multiplied as fp16, which large ones do not fit into as they are."""
    step = Step(replace(PLAIN, scale=0.25 / size), [(40, 1), (9, 1), (5, 4)], torch.bfloat16, cache)
    step.query *= size
    check(step, TritonBackend(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", ["plain", "everything", "three heads a key"])
def test_bits_do_not_depend_on_company_or_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token alone as a decode, at the end of a part, and beside other sequences."""
    monkeypatch.setattr(attend, "SPLIT", 32)
    spec, backend = SPECS[name], TritonExactBackend()
    whole = Step(spec, [(60, 12)])
    out = whole.run(backend)
    cache = whole.cache.clone()
    backend.forward(whole.query, whole.key, whole.value, cache, whole.metadata, spec, whole.sinks)
    for last in (1, 5):
        part = Step(spec, [(72 - last, last), (40, 1), (3, 7)], seed=1)
        place = part.sequences.index((72 - last, last))
        at = int(part.metadata.query_start[place])
        # the same tokens and the same cache, seen through other block tables
        shift = len(part.cache)
        table = torch.zeros(3, whole.metadata.block_tables.shape[1], dtype=torch.int32)
        table[:, : part.metadata.block_tables.shape[1]] = part.metadata.block_tables
        table[place] = whole.metadata.block_tables[0] + shift
        joined = torch.cat((part.cache, cache))
        slots = part.metadata.slot_mapping.clone()
        slots[at : at + last] = whole.metadata.slot_mapping[-last:] + shift * BLOCK
        query, key, value = part.query.clone(), part.key.clone(), part.value.clone()
        for mine, theirs in ((query, whole.query), (key, whole.key), (value, whole.value)):
            mine[at : at + last] = theirs[-last:]
        metadata = replace(part.metadata, block_tables=table, slot_mapping=slots)
        found = backend.forward(query, key, value, joined, metadata, spec, whole.sinks)
        assert torch.equal(found[at : at + last], out[-last:])


def test_no_number_of_one_sequence_reaches_another() -> None:
    step = Step(PLAIN, [(6, 1), (5, 3)])
    blocks = step.metadata.block_tables[1][:1].long()
    step.cache[blocks] = torch.nan
    out = step.run(TritonBackend())
    assert out[0].isfinite().all()
    assert out[1:].isnan().any()


def test_what_it_does_not_take() -> None:
    backend = TritonBackend()
    assert backend.why_not("mps", PLAIN) == "for CUDA"
    assert "decoders" in str(backend.why_not("cpu", replace(PLAIN, attn_type=AttentionType.ENCODER_ONLY)))
    assert "256" in str(backend.why_not("cpu", replace(PLAIN, head_size=512)))
    assert "int8" in str(backend.why_not("cpu", replace(PLAIN, cache_dtype=torch.int8)))
    assert backend.why_not("cpu", PLAIN) is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float8_e4m3fn])
def test_on_a_gpu(name: str, cache: torch.dtype) -> None:
    spec = replace(SPECS[name], head_size=128, scale=128**-0.5)
    sequences = [(4000, 1), (77, 1), (900, 200), (0, 513)]
    step = Step(spec, sequences, torch.bfloat16, cache, device="cuda", block=16)
    for backend in (TritonBackend(), TritonExactBackend()):
        check(step, backend, rtol=2e-2, atol=2e-2)
