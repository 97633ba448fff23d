"""Backends that call other libraries' kernels: what they pass is what the library's documentation asks for, and with
kernels written down in torch the answers are right. On a GPU, with the libraries' own, they are the reference's."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from bestiary.api.errors import UsageError
from bestiary.nn.attention import flashinfer, plain, varlen
from bestiary.nn.attention.backend import AttentionType, KVCacheSpec
from bestiary.nn.attention.choice import choose_backend
from bestiary.nn.attention.flashinfer import FlashInferBackend
from bestiary.nn.attention.reference import ReferenceBackend
from bestiary.nn.attention.varlen import VarlenBackend

from .test_backends import MIXED, Batch, Case, batch_of, run, spec_of

PLAIN = spec_of(6, 2, 64)
WINDOW = replace(PLAIN, sliding_window=5)
BF16 = torch.bfloat16


def written_down(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    length: int,
    before: int,
    scale: float,
    cap: float | None,
) -> Tensor:
    """One sequence's last rows over the first `length` tokens of its pages; `before`: keys before its own, or −1."""
    k, v = (each[pages.long()].flatten(0, 1)[:length].double() for each in (keys, values))
    group = query.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query.double(), k.repeat_interleave(group, 1)) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    here = torch.arange(length - len(query), length)[:, None]
    there = torch.arange(length)
    hidden = (there > here) | ((there < here - before) if before >= 0 else torch.tensor(False))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1)).to(query.dtype)


class Varlen:
    """`varlen_attn` in torch, and what it was given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor, block_table: Tensor,
        num_splits: int,
    ) -> Tensor:  # fmt: skip
        self.given.append(locals())
        starts, lengths = cu_seq_q.tolist(), seqused_k.tolist()
        assert window_size[1] == 0 and enable_gqa == (query.shape[1] != key.shape[2])
        rows = [query[start:end] for start, end in pairwise(starts)]
        return torch.cat([
            written_down(rows[s], key, value, block_table[s], lengths[s], window_size[0], scale, None)
            for s in range(len(lengths))
        ])  # fmt: skip


class FlashInfer:
    """FlashInfer's two wrappers in torch, and all of them that were made."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.module = ModuleType("flashinfer")
        made = self.made

        class Wrapper:
            def __init__(self, workspace: Tensor, kv_layout: str, use_tensor_cores: bool = False) -> None:
                assert workspace.dtype is torch.uint8 and not workspace.any() and kv_layout == "NHD"
                self.workspace, self.tensor_cores, self.plans, self.runs = workspace, use_tensor_cores, [], 0
                made.append(self)

            def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
                self.runs += 1
                starts, first, pages, last, shape, options = self.plans[-1]
                keys, values = paged_kv_cache
                assert q.is_contiguous() and keys.stride() == values.stride()
                assert shape == (q.shape[1], *keys.shape[2:], keys.shape[1])
                assert options["q_data_type"] is q.dtype and options["kv_data_type"] is keys.dtype
                starts = torch.arange(len(last) + 1) if starts is None else starts
                parts = []
                for s in range(len(last)):
                    mine = pages[first[s] : first[s + 1]]
                    length = (len(mine) - 1) * shape[3] + int(last[s])
                    rest = options["window_left"], options["sm_scale"], options["logits_soft_cap"]
                    parts.append(written_down(q[starts[s] : starts[s + 1]], keys, values, mine, length, *rest))
                return torch.cat(parts)

        class Decode(Wrapper):
            def plan(self, indptr, indices, last_page_len, *shape, **options):
                self.plans.append((None, indptr, indices, last_page_len, shape, options))

        class Prefill(Wrapper):
            def __init__(self, workspace: Tensor, kv_layout: str, *, backend: str) -> None:
                assert backend == "fa2"
                super().__init__(workspace, kv_layout)

            def plan(self, qo_indptr, indptr, indices, last_page_len, *shape, causal, **options):
                assert causal
                self.plans.append((qo_indptr, indptr, indices, last_page_len, shape, options))

        self.module.BatchDecodeWithPagedKVCacheWrapper = Decode
        self.module.BatchPrefillWithPagedKVCacheWrapper = Prefill


@pytest.fixture(autouse=True)
def small_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "_WORKSPACE_BYTES", 1 << 10)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Varlen:
    fake = Varlen()
    monkeypatch.setattr(torch_varlen, "varlen_attn", fake)
    return fake


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FlashInfer:
    fake = FlashInfer()
    monkeypatch.setitem(sys.modules, "flashinfer", fake.module)
    return fake


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an H100 with FlashInfer installed, as far as reasons go."""
    monkeypatch.setattr(plain.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(flashinfer.importlib.util, "find_spec", lambda name: object())


def close(found: Tensor, batch: Batch) -> None:
    torch.testing.assert_close(found.double(), batch.expected, rtol=3e-2, atol=3e-2)


def case(sequences: list[tuple[int, int]], spec: Any = PLAIN, **options: Any) -> Case:
    return Case(spec, sequences, **{"dtype": BF16, **options})


GEOMETRIES = st.tuples(
    st.lists(st.tuples(st.integers(0, 14), st.just(1)), max_size=3),
    st.lists(st.tuples(st.integers(0, 14), st.integers(2, 9)), min_size=1, max_size=2),
).map(lambda pair: pair[0] + pair[1])


@settings(max_examples=20, deadline=None)
@given(GEOMETRIES, st.sampled_from([PLAIN, WINDOW, spec_of(2, 2, 8)]))
def test_varlen(sequences: list[tuple[int, int]], spec: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_varlen, "varlen_attn", Varlen())
        patch.setattr(varlen, "PAGE_SIZE", 1)
        batch = batch_of(case(sequences, spec), VarlenBackend())
        close(run(VarlenBackend(), batch, spec), batch)


def test_varlen_is_told_where_everything_is(called: Varlen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "PAGE_SIZE", 4)
    batch = batch_of(case(MIXED, WINDOW), VarlenBackend())
    for _ in range(2):
        run(VarlenBackend(), batch, WINDOW)
    first, second = called.given
    metadata = batch.metadata
    assert first["cu_seq_q"] is metadata.query_start and first["cu_seq_q"].dtype is torch.int32
    assert first["cu_seq_k"].tolist() == [0, *torch.tensor(metadata.seq_lens_host).cumsum(0).tolist()]
    assert first["cu_seq_k"].dtype is torch.int32 and second["cu_seq_k"] is first["cu_seq_k"]
    assert first["seqused_k"] is metadata.seq_lens and first["block_table"] is metadata.block_tables
    assert (first["max_q"], first["max_k"]) == (11, 23)
    assert first["key"].shape == (len(batch.kv_cache), 4, 2, 64) and first["key"].stride() == first["value"].stride()
    assert (first["num_splits"], first["window_size"]) == (1, (4, 0))
    run(VarlenBackend(), batch_of(case(MIXED), VarlenBackend()), PLAIN)
    assert called.given[-1]["window_size"] == (-1, 0)


def test_varlen_wants_large_blocks() -> None:
    spec = KVCacheSpec(num_kv_heads=2, head_size=64, dtype=BF16)
    assert VarlenBackend().cache_shape(spec, 3, 512) == (3, 512, 2, 2, 64)
    with pytest.raises(UsageError) as caught:
        VarlenBackend().cache_shape(spec, 3, 16)
    assert caught.value.field == "block_size" and "256" in caught.value.fix


@settings(max_examples=20, deadline=None)
@given(GEOMETRIES, st.sampled_from([PLAIN, WINDOW, replace(PLAIN, logits_soft_cap=0.5), spec_of(2, 2, 64)]))
def test_flashinfer(sequences: list[tuple[int, int]], spec: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flashinfer", FlashInfer().module)
        backend = FlashInferBackend()
        batch = batch_of(case(sequences, spec), backend)
        close(run(backend, batch, spec), batch)


def test_flashinfer_plans_once_a_step_for_each_kind_of_layer(library: FlashInfer) -> None:
    backend, first = FlashInferBackend(), batch_of(case(MIXED), FlashInferBackend())
    second = batch_of(case([(2, 1), (0, 5)], seed=3), backend)
    for _ in range(3):
        close(run(backend, first, PLAIN), first)
        run(backend, first, WINDOW)
    assert [(len(each.plans), each.runs) for each in library.made] == [(1, 3)] * 4
    assert len({id(each.workspace) for each in library.made}) == 1
    assert {each.tensor_cores for each in library.made[::2]} == {True}
    close(run(backend, second, PLAIN), second)
    close(run(backend, first, PLAIN), first)  # two engines by turns: a plan of another step is never taken
    assert [len(each.plans) for each in library.made] == [3, 3, 1, 1]


def test_flashinfer_is_told_where_everything_is(library: FlashInfer) -> None:
    batch = batch_of(case(MIXED), FlashInferBackend())
    run(FlashInferBackend(), batch, PLAIN)
    decode, prefill = (each.plans[0] for each in library.made)
    tables = batch.metadata.block_tables
    assert decode[1].tolist() == [0, 3, 4, 10] and decode[3].tolist() == [2, 1, 2]
    assert decode[2].tolist() == [*tables[0, :3].tolist(), *tables[1, :1].tolist(), *tables[2, :6].tolist()]
    assert prefill[0].tolist() == [0, 7, 10, 21] and prefill[1].tolist() == [0, 2, 4, 10]
    assert {each.dtype for each in (*decode[1:4], *prefill[:4])} == {torch.int32}
    assert decode[5]["window_left"] == -1 and decode[5]["sm_scale"] == PLAIN.scale
    run(FlashInferBackend(), batch, WINDOW)
    assert library.made[-1].plans[0][5]["window_left"] == 4


@pytest.mark.parametrize("backend", [VarlenBackend(), FlashInferBackend()], ids=lambda each: each.name)
def test_reasons(backend: Any, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.why_not("cpu", PLAIN) == "for CUDA"
    assert backend.why_not("cuda", PLAIN) is None and backend.why_not("cuda", WINDOW) is None
    for refused in (
        replace(PLAIN, has_sinks=True), replace(PLAIN, alibi_slopes=(0.5,) * 6), replace(PLAIN, head_size=300),
        replace(PLAIN, attn_type=AttentionType.ENCODER_ONLY), replace(PLAIN, cache_dtype=torch.float8_e4m3fn),
        replace(PLAIN, cache_dtype=torch.int8),
    ):  # fmt: skip
        assert backend.why_not("cuda", refused)
    assert choose_backend(backend.name, "cuda", [PLAIN], dtype=BF16).name == backend.name
    with pytest.raises(UsageError) as caught:
        choose_backend(backend.name, "cuda", [PLAIN], dtype=torch.float32)
    assert caught.value.details == (f"{backend.name}: takes bfloat16, float16",)
    monkeypatch.setattr(plain.torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "8.0" in backend.why_not("cuda", PLAIN)


def test_what_only_one_of_them_refuses(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    capped = replace(PLAIN, logits_soft_cap=30.0)
    assert VarlenBackend().why_not("cuda", capped) == "has no soft cap"
    assert FlashInferBackend().why_not("cuda", capped) is None
    assert FlashInferBackend().why_not("cuda", replace(PLAIN, head_size=80)) == "for heads of 64, 128, 256 channels"
    monkeypatch.setattr(varlen, "takes_pages", lambda: False)
    assert VarlenBackend().why_not("cuda", PLAIN).endswith("has no varlen_attn over pages")
    monkeypatch.setattr(flashinfer.importlib.util, "find_spec", lambda name: None)
    assert "pip install bestiary[flashinfer]" in FlashInferBackend().why_not("cuda", PLAIN)


def test_nobody_gets_them_unasked() -> None:
    offered = {"varlen": VarlenBackend(), "flashinfer": FlashInferBackend()}
    assert choose_backend(None, "cpu", [PLAIN], offered).name == "torch"


@pytest.mark.parametrize("backend", [VarlenBackend(), FlashInferBackend()], ids=lambda each: each.name)
def test_a_cache_of_another_dtype_is_refused(backend: Any) -> None:
    batch = batch_of(case(MIXED), ReferenceBackend())
    with pytest.raises(UsageError, match="the queries' dtype only"):
        backend.compute(batch.query, None, None, batch.kv_cache.half(), batch.metadata, PLAIN, None)


def on(device: str, batch: Batch) -> Batch:
    tensors = {name: each.to(device) for name, each in vars(batch).items() if isinstance(each, Tensor)}
    metadata = batch.metadata
    fields = ("query_start", "seq_lens", "block_tables", "slot_mapping")
    moved = replace(metadata, derived={}, **{name: getattr(metadata, name).to(device) for name in fields})
    return replace(batch, **tensors, metadata=moved)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("backend", [VarlenBackend(), FlashInferBackend()], ids=lambda each: each.name)
def test_like_the_reference_on_a_gpu(backend: Any, dtype: torch.dtype, window: int | None) -> None:
    spec = replace(spec_of(32, 8, 128), sliding_window=window)
    if reason := backend.why_not("cuda", spec):
        pytest.skip(reason)
    sequences = [(700, 1), (0, 1), (255, 1), (256, 1), (0, 513), (300, 70)]
    batch = on("cuda", batch_of(case(sequences, spec, dtype=dtype, block_size=256), backend))
    found, wanted = run(backend, batch, spec), run(ReferenceBackend(), batch, spec)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
