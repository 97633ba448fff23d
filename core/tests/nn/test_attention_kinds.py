"""Latent attention, chunks, learned keys, prefix language models, values of another width: over steps of every cut,
each against the formula written out once more, in fp64, over whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bestiary.api.config import CacheConfig, ModelConfig, VllmConfig
from bestiary.api.errors import ConfigError, EngineError, UsageError
from bestiary.engine.loader.vllm_config import _uses_mla
from bestiary.engine.pooler import with_pooler
from bestiary.nn import (
    Attention,
    AttentionLayerBase,
    ChunkedLocalAttention,
    ColumnParallelLinear,
    MLAAttention,
    MLAModules,
    MultiHeadLatentAttentionWrapper,
    PrefillPrefixLMAttention,
    StaticSinkAttention,
)
from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.choice import BACKENDS, choose_backend, why_not_layer
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.triton import TritonBackend
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.ops.latent import fixed_tile_linear_by_head, linear_by_head

HEADS, KV_HEADS, SIZE, BLOCK = 4, 2, 16, 4
RANK, NOPE, ROPE, VALUE = 24, 12, 8, 10
LENGTHS = (13, 9, 1, 22)
OWN = ("torch", "reference", "deterministic")
CUTS: dict[str, list[list[tuple[int, int]]]] = {
    "whole": [[(2, 1), (0, 13), (1, 9), (3, 22)]],
    "pieces": [
        [(0, 5), (3, 7)],
        [(3, 1), (0, 3)],
        [(2, 1), (1, 8), (3, 10)],
        [(0, 1), (1, 1), (3, 1)],
        [(0, 4), (3, 3)],
    ],
    "one by one": [[(sequence, 1) for sequence, length in enumerate(LENGTHS) if step < length] for step in range(22)],
}
"""Steps, each of (sequence, how many tokens of it), those of one token first."""
Steps = list[list[tuple[int, int]]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def metadata_of(step: Sequence[tuple[int, int]], done: Sequence[int], prompts: Sequence[int]) -> AttentionMetadata:
    """Sequence s has every fourth block, beginning with the s-th."""
    counts = tuple(count for _, count in step)
    lengths = tuple(done[sequence] + count for sequence, count in step)
    table = torch.tensor([[sequence + 4 * index for index in range(6)] for sequence, _ in step], dtype=torch.int32)
    slots = [
        (sequence + 4 * (position // BLOCK)) * BLOCK + position % BLOCK
        for sequence, count in step
        for position in range(done[sequence], done[sequence] + count)
    ]
    return AttentionMetadata(
        query_start=torch.tensor([0, *counts]).cumsum(0).int(), seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=table, slot_mapping=torch.tensor(slots), query_lens_host=counts, seq_lens_host=lengths,
        max_query_len=max(counts), max_seq_len=max(lengths), num_decodes=sum(count == 1 for count in counts),
        block_size=BLOCK, prompt_lens=torch.tensor([prompts[sequence] for sequence, _ in step]),
    )  # fmt: skip


def over_steps(
    layer: AttentionLayerBase, given: Sequence[Sequence[Tensor]], steps: Steps, prompts: Sequence[int] = LENGTHS
) -> list[Tensor]:
    """The layer's results for each sequence, whose inputs are ``given[sequence]``, computed step by step."""
    layer.layer_name = "layers.0.attn"
    spec = layer.get_kv_cache_spec()
    assert spec is not None
    shape = tuple(layer.bound_backend().cache_shape(spec, 24, BLOCK))
    caches = {layer.layer_name: torch.full(shape, 1e4).to(spec.dtype)}
    done, found = [0] * len(given), [[] for _ in given]  # type: ignore[var-annotated]
    for step in steps:
        rows = [[each[done[s] : done[s] + count] for each in given[s]] for s, count in step]
        together = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        with forward_context(ForwardContext(metadata_of(step, done, prompts), caches)):
            out = layer(*together)
        for (sequence, count), part in zip(step, out.split([count for _, count in step]), strict=True):
            found[sequence].append(part)
            done[sequence] += count
    assert done == [len(each[0]) for each in given]
    return [torch.cat(parts) for parts in found]


def dense(query: Tensor, key: Tensor, value: Tensor, visible: Callable[[int, int], bool], scale: float) -> Tensor:
    """``[tokens, heads, …]`` each, the last queries of the keys; in fp64."""
    before = len(key) - len(query)
    seen = torch.tensor([[visible(row + before, column) for column in range(len(key))] for row in range(len(query))])
    group = query.shape[1] // key.shape[1]
    key, value = (each.double().repeat_interleave(group, 1) for each in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def causal(query: int, key: int) -> bool:
    return key <= query


def plain_inputs(value_size: int = SIZE) -> list[list[Tensor]]:
    sizes = (HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * value_size)
    return [[randn(length, size, seed=i) for i, size in enumerate(sizes)] for length in LENGTHS]


def by_head(given: Sequence[Tensor]) -> list[Tensor]:
    return [each.view(len(each), heads, -1) for each, heads in zip(given, (HEADS, KV_HEADS, KV_HEADS), strict=True)]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


# Latent attention.


def latent_layer(backend: str = "torch", **options: Any) -> tuple[MLAAttention, Tensor]:
    """The layer as an engine leaves it, and its projection ``[heads, nope + v, rank]``."""
    projection = ColumnParallelLinear(RANK, HEADS * (NOPE + VALUE), bias=False)
    weight = randn(HEADS * (NOPE + VALUE), RANK) / RANK**0.5
    projection.weight = nn.Parameter(weight, requires_grad=False)
    layer = MLAAttention(
        num_heads=HEADS, scale=0.2, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE, q_lora_rank=None,
        kv_lora_rank=RANK, kv_b_proj=projection, attn_backend=BACKENDS[backend], **options,
    )  # fmt: skip
    layer.finish()
    return layer, weight.view(HEADS, NOPE + VALUE, RANK)


def latent_inputs() -> list[list[Tensor]]:
    return [
        [randn(n, HEADS, NOPE + ROPE), randn(n, RANK, seed=1), randn(n, 1, ROPE, seed=2)] for n in LENGTHS
    ]  # fmt: skip


def latent_dense(given: Sequence[Tensor], weight: Tensor, visible: Callable[[int, int], bool] = causal) -> Tensor:
    query, latent, rope = given
    made = torch.einsum("tr,hor->tho", latent.double(), weight.double())
    key = torch.cat((made[..., :NOPE], rope.double().expand(-1, HEADS, -1)), -1)
    return dense(query, key, made[..., NOPE:], visible, 0.2)


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("window", [None, 6])
def test_latent_attention(backend: str, cut: str, window: int | None) -> None:
    layer, weight = latent_layer(backend, sliding_window=window)
    given = latent_inputs()
    found = over_steps(layer, given, CUTS[cut])
    same(found, [latent_dense(each, weight, lambda q, k: q - (window or 99) < k <= q) for each in given])


@pytest.mark.parametrize("expands", [True, False])
def test_both_ways_are_one(expands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cost says; and by groups of heads, where all at once would be too much."""
    monkeypatch.setattr(MLAAttention, "_expands", lambda *_: expands)
    monkeypatch.setattr("bestiary.nn.attention.latent._EXPANDED_BYTES", 2 * 22 * 20 * 4 * 3)
    layer, weight = latent_layer()
    given = latent_inputs()
    same(over_steps(layer, given, CUTS["pieces"]), [latent_dense(each, weight) for each in given])


def test_the_way_of_fewer_products() -> None:
    """DeepSeek-V2's sizes: prompts are expanded whatever their length, a decode row never."""
    layer, _ = latent_layer()
    layer.kv_lora_rank, layer.head_size = 512, 576
    layer.qk_nope_head_dim, layer.qk_head_dim, layer.v_head_dim = 128, 192, 128
    assert [layer._expands(count, 4096) for count in (1, 128, 256, 4096)] == [False, False, True, True]
    assert layer._expands(2, 2)


def test_a_token_keeps_one_row() -> None:
    layer, _ = latent_layer()
    spec = layer.get_kv_cache_spec()
    assert spec is not None
    assert spec.bytes_per_token == (RANK + ROPE) * 4
    assert layer.bytes_added() == 0
    kept = {backend: tuple(BACKENDS[backend].cache_shape(spec, 3, BLOCK)) for backend in OWN}
    assert set(kept.values()) == {(3, BLOCK, 1, 1, RANK + ROPE)}


def test_a_row_is_its_own_in_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, however the sequence is cut and whoever is beside it."""
    monkeypatch.setattr(linear_by_head, "active", fixed_tile_linear_by_head)
    layer, _ = latent_layer("deterministic")
    given = latent_inputs()
    runs = [over_steps(layer, given, steps) for steps in CUTS.values()]
    for other in runs[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(runs[0], other, strict=True))


def test_a_packed_projection_is_read_through_its_product() -> None:
    layer, weight = latent_layer()
    layer.dtype = torch.float64  # so that the weight is not in the layer's dtype

    def projected(x: Tensor) -> Tensor:
        return x @ weight.flatten(0, 1).double().t()

    monkey: Any = layer.kv_b_proj
    monkey.forward = projected
    assert layer.bytes_added() == weight.numel() * 8
    layer.finish()
    assert torch.equal(layer._taken()[0], weight.double())


def test_a_latent_that_is_not_finite_reaches_who_sees_it() -> None:
    layer, _ = latent_layer()
    given = latent_inputs()
    given[0][2][3] = torch.inf
    first, second, *_ = over_steps(layer, given, CUTS["pieces"])
    assert torch.isnan(first[3:]).all()
    assert torch.isfinite(second).all()


def test_an_fp8_cache_of_latents_is_scaled() -> None:
    layer, weight = latent_layer(cache_config=CacheConfig(cache_dtype="fp8"))
    layer.k_scale = 0.125
    given = latent_inputs()
    for each in given:
        each[1], each[2] = (part.to(torch.float8_e4m3fn).float() / 8 for part in each[1:])  # which fp8 holds exactly
    same(over_steps(layer, given, CUTS["pieces"]), [latent_dense(each, weight) for each in given])


def test_what_latent_attention_does_not_do() -> None:
    with pytest.raises(ConfigError, match="use_sparse") as caught:
        latent_layer(use_sparse=True)
    assert caught.value.field == "use_sparse"
    layer, _ = latent_layer(use_sparse=False, indexer=None)
    layer._weights = None
    with pytest.raises(EngineError, match="no weights"):
        over_steps(layer, latent_inputs(), CUTS["whole"])


def test_a_backend_must_say_what_it_takes() -> None:
    class Other(TritonBackend):
        name = "other"

        def why_not(self, device: str, spec: AttentionSpec) -> str | None:
            return None

    special = [latent_layer()[0].spec, ChunkedLocalAttention(HEADS, SIZE, 1.0, 4).spec]
    assert [why_not_layer(Other(), "cpu", each) for each in special] == [
        "has no latent attention", "has no attention within chunks",
    ]  # fmt: skip
    assert choose_backend(None, "cpu", special, {"other": Other()}).name == "torch"
    with pytest.raises(UsageError, match="other cannot run"):
        choose_backend("other", "cpu", special, {"other": Other()})


class Split(nn.Module):
    """A linear layer as model files know them: its output and a bias that was left out."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(outputs, inputs) / inputs**0.5, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self.weight.t(), None


@pytest.mark.parametrize("low_rank", [None, 14])
def test_the_whole_block(low_rank: int | None) -> None:
    """Projections, norms, rotation and gate as arXiv 2405.04434 has them."""
    hidden, length = 20, 11
    layer, weight = latent_layer()
    queries = HEADS * (NOPE + ROPE)
    norm, low_norm = nn.RMSNorm(RANK), None if low_rank is None else nn.RMSNorm(low_rank)
    joint, direct, up = Split(hidden, (low_rank or 0) + RANK + ROPE), Split(hidden, queries), None
    if low_rank is not None:
        up = Split(low_rank, queries)

    def double(positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query * 2, key * 3

    gate, out = Split(hidden, HEADS * VALUE), Split(HEADS * VALUE, hidden)
    block = MultiHeadLatentAttentionWrapper(
        hidden_size=hidden, num_heads=HEADS, scale=0.2, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE,
        v_head_dim=VALUE, q_lora_rank=low_rank, kv_lora_rank=RANK, prefix="layers.0.self_attn",
        mla_modules=MLAModules(
            kv_a_layernorm=norm, kv_b_proj=layer.kv_b_proj, rotary_emb=double, o_proj=out,  # type: ignore[arg-type]
            fused_qkv_a_proj=joint if low_rank else None, kv_a_proj_with_mqa=None if low_rank else joint,
            q_a_layernorm=low_norm, q_b_proj=up, q_proj=None if low_rank else direct, g_proj=gate,
        ),
    )  # fmt: skip
    block.mla_attn.layer_name, block.mla_attn.backend = "attn", BACKENDS["torch"]
    block.mla_attn.finish()
    spec = block.mla_attn.get_kv_cache_spec()
    assert spec is not None
    x, step = randn(length, hidden), metadata_of([(0, length)], [0], [length])
    caches = {"attn": torch.zeros(tuple(BACKENDS["torch"].cache_shape(spec, 24, BLOCK)))}
    with forward_context(ForwardContext(step, caches)):
        found = block(torch.arange(length), x, torch.full((length, 1, 1), 0.5))

    made = joint(x)[0]
    low, latent, rope = made.split([low_rank or 0, RANK, ROPE], -1)
    query = (direct(x)[0] if up is None or low_norm is None else up(low_norm(low))[0]).view(length, HEADS, -1)
    query = torch.cat((query[..., :NOPE], query[..., NOPE:] * 2), -1) * 0.5
    attended = latent_dense([query, norm(latent), rope[:, None] * 3], weight)
    expected = (attended * gate(x)[0].double().sigmoid()) @ out.weight.double().t()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_block_names_what_it_lacks() -> None:
    layer, _ = latent_layer()
    parts = dict.fromkeys(
        ("rotary_emb", "fused_qkv_a_proj", "kv_a_proj_with_mqa", "q_a_layernorm", "q_b_proj", "q_proj")
    )
    given = MLAModules(kv_a_layernorm=nn.Identity(), kv_b_proj=layer.kv_b_proj, o_proj=nn.Identity(), **parts)
    sizes = {"hidden_size": 8, "num_heads": HEADS, "scale": 1.0, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE}
    sizes |= {"v_head_dim": VALUE, "q_lora_rank": None, "kv_lora_rank": RANK}
    with pytest.raises(ConfigError, match="kv_a_proj_with_mqa"):
        MultiHeadLatentAttentionWrapper(**sizes, mla_modules=given)  # type: ignore[arg-type]
    given.indexer = nn.Identity()
    with pytest.raises(ConfigError, match="indexer"):
        MultiHeadLatentAttentionWrapper(**sizes, mla_modules=given)  # type: ignore[arg-type]


# The others.


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("cut", CUTS)
def test_attention_within_chunks(backend: str, cut: str) -> None:
    layer = ChunkedLocalAttention(HEADS, SIZE, 0.3, 5, num_kv_heads=KV_HEADS, attn_backend=BACKENDS[backend])
    given = plain_inputs()
    expected = [dense(*by_head(each), lambda q, k: k <= q and k // 5 == q // 5, 0.3) for each in given]
    same(over_steps(layer, given, CUTS[cut]), expected)


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("value_size", [8, 24])
def test_values_of_another_width(backend: str, value_size: int) -> None:
    layer = Attention(
        HEADS, SIZE, 0.3, KV_HEADS, head_size_v=value_size, per_layer_sliding_window=6, attn_backend=BACKENDS[backend]
    )
    given = plain_inputs(value_size)
    expected = [dense(*by_head(each), lambda q, k: q - 6 < k <= q, 0.3) for each in given]
    found = over_steps(layer, given, CUTS["pieces"])
    assert found[0].shape == (LENGTHS[0], HEADS * value_size)
    same(found, expected)


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("value_size", [SIZE, 8])
def test_learned_keys_before_every_sequence(backend: str, cut: str, value_size: int) -> None:
    layer = StaticSinkAttention(
        HEADS, SIZE, 0.3, 3, num_kv_heads=KV_HEADS, head_size_v=value_size, attn_backend=BACKENDS[backend]
    )
    learned = randn(3, KV_HEADS, SIZE, seed=7), randn(3, KV_HEADS, value_size, seed=8)
    given = plain_inputs(value_size)
    with pytest.raises(EngineError, match="no learned keys"):
        over_steps(layer, given, CUTS[cut])
    layer.update_sink_kv(*learned)
    expected = []
    for each in given:
        query, key, value = by_head(each)
        expected.append(dense(query, torch.cat((learned[0], key)), torch.cat((learned[1], value)), causal, 0.3))
    same(over_steps(layer, given, CUTS[cut]), expected)


@pytest.mark.parametrize("backend", OWN)
def test_prompts_that_see_themselves_whole(backend: str) -> None:
    """Two prompts, one of which is computed again with its answer, and two of one token."""
    layer = PrefillPrefixLMAttention(
        HEADS, SIZE, 0.3, num_kv_heads=KV_HEADS, attn_type="decoder", attn_backend=BACKENDS[backend]
    )
    assert layer.reads_ahead
    prompts, given = (6, 9, 1, 1), plain_inputs()
    expected = [
        dense(*by_head(each), lambda q, k, p=prompt: k <= q or (q < p and k < p), 0.3)  # type: ignore[misc]
        for each, prompt in zip(given, prompts, strict=True)
    ]
    again: Steps = [[(2, 1), (0, 13), (1, 9), (3, 2)], [(3, 1)], [(3, 19)]]
    same(over_steps(layer, given, again, prompts), expected)
    one_by_one: Steps = [[(2, 1), (0, 6), (1, 9), (3, 5)], *[[(0, 1), (3, 1)]] * 7, *[[(3, 1)]] * 10]
    same(over_steps(layer, given, one_by_one, prompts), expected)
    with pytest.raises(EngineError, match="in pieces"):
        over_steps(layer, given, CUTS["pieces"], prompts)


def test_the_engine_neither_cuts_nor_shares_prompts_that_see_themselves_whole() -> None:
    model_config = ModelConfig(
        model="tiny", architecture="T", hf_config=None, hf_text_config=None, dtype=torch.float32, max_model_len=64
    )
    config = VllmConfig(model_config=model_config)
    plain = nn.ModuleList([Attention(HEADS, SIZE, 1.0)])
    assert with_pooler(config, plain, None) == config
    ahead = with_pooler(config, nn.ModuleList([*plain, PrefillPrefixLMAttention(HEADS, SIZE, 1.0)]), None)
    assert not ahead.scheduler_config.enable_chunked_prefill
    assert not ahead.cache_config.enable_prefix_caching


@pytest.mark.parametrize(
    ("fields", "uses"),
    [
        ({"kv_lora_rank": 16, "qk_rope_head_dim": 8}, True),
        ({"kv_lora_rank": None, "qk_rope_head_dim": 8}, False),
        ({"kv_lora_rank": 16, "qk_rope_head_dim": 8, "use_mla": False}, False),
        ({"kv_lora_rank": 16, "qk_rope_head_dim": 8, "is_causal": False}, False),
        ({}, False),
    ],
)
def test_which_models_have_latents_to_keep(fields: dict[str, Any], uses: bool) -> None:
    assert _uses_mla(SimpleNamespace(**fields)) is uses


def test_what_layers_refuse() -> None:
    with pytest.raises(ConfigError, match="attention_chunk_size"):
        ChunkedLocalAttention(HEADS, SIZE, 1.0, 0)
    for kind, options in ((PrefillPrefixLMAttention, {}), (StaticSinkAttention, {"sink_len": 2})):
        with pytest.raises(ConfigError, match="kv_sharing_target_layer_name"):
            kind(HEADS, SIZE, 1.0, kv_sharing_target_layer_name="layers.0", **options)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="attn_type"):
        PrefillPrefixLMAttention(HEADS, SIZE, 1.0, attn_type="encoder")
