"""The attention layer: what it accepts and says of itself, and its results against transformers' eager attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from bestiary.api.config import CacheConfig, ModelConfig, VllmConfig
from bestiary.api.errors import ConfigError, EngineError, ModelError, UsageError
from bestiary.engine.binding import bind_attention
from bestiary.nn.attention.alibi import get_alibi_slopes
from bestiary.nn.attention.backend import AttentionSpec, AttentionType, KVCacheSpec
from bestiary.nn.attention.choice import BACKENDS
from bestiary.nn.attention.layer import Attention, EncoderOnlyAttention
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.ops.attention import gather_kv_cache, write_kv_cache
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import place
from bestiary.nn.scope import build_scope

RUN_HERE = sorted(
    name
    for name, each in BACKENDS.items()
    if each.why_not("cpu", AttentionSpec(num_heads=1, num_kv_heads=1, head_size=16, scale=1.0)) is None
)

HEADS, KV_HEADS, SIZE, LENGTH, BLOCK = 4, 2, 16, 11, 4
SCALE = SIZE**-0.5


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def one_prompt(length: int = LENGTH) -> AttentionMetadata:
    slots = torch.arange(length)
    return AttentionMetadata(
        query_start=torch.tensor([0, length], dtype=torch.int32),
        seq_lens=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.arange(-(-length // BLOCK), dtype=torch.int32)[None],
        slot_mapping=slots,
        query_lens_host=(length,),
        seq_lens_host=(length,),
        max_query_len=length,
        max_seq_len=length,
        num_decodes=int(length == 1),
        block_size=BLOCK,
    )


def continued(start: int, count: int) -> AttentionMetadata:
    """A step that computes `count` tokens after `start` earlier ones of the same sequence."""
    return replace(
        one_prompt(start + count),
        query_start=torch.tensor([0, count], dtype=torch.int32),
        slot_mapping=torch.arange(start, start + count),
        query_lens_host=(count,),
        max_query_len=count,
        num_decodes=int(count == 1),
    )


def finished(layer: Attention, name: str = "layers.0.attn", backend: str = "torch") -> tuple[Attention, dict[str, Any]]:
    """The layer as an engine leaves it, and the caches of its context."""
    layer.layer_name, layer.backend = name, BACKENDS[backend]
    spec = layer.get_kv_cache_spec()
    return layer, {} if spec is None else {
        name: torch.zeros(*layer.backend.cache_shape(spec, 8, BLOCK), dtype=spec.dtype)
    }


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(LENGTH, HEADS * SIZE), randn(LENGTH, KV_HEADS * SIZE, seed=1), randn(LENGTH, KV_HEADS * SIZE, seed=2)


def by_head(x: torch.Tensor) -> torch.Tensor:
    return x.view(1, LENGTH, -1, SIZE).transpose(1, 2)


def causal() -> torch.Tensor:
    return torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]


def run(layer: Attention, caches: dict[str, Any]) -> torch.Tensor:
    with forward_context(ForwardContext(attention=one_prompt(), kv_caches=caches)):
        return layer(*inputs())


def bloom_slopes(heads: int) -> list[float]:
    """The published slopes of ALiBi, read off transformers' tensor: its value at position 1."""
    return build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].tolist()


def bloom_attention(module: Any, query: Any, key: Any, value: Any, mask: torch.Tensor, scaling: float) -> Any:
    alibi = build_alibi_tensor(torch.ones(1, LENGTH), HEADS, torch.float32)[None]
    return gemma2_attention(module, query, key, value, mask + alibi, scaling=scaling)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 25, 32, 71, 112])
def test_alibi_slopes_are_the_published_ones(heads: int) -> None:
    torch.testing.assert_close(get_alibi_slopes(heads), bloom_slopes(heads), rtol=1e-6, atol=0)


def test_a_rank_gets_the_slopes_of_its_own_heads() -> None:
    shares = []
    for rank in range(4):
        with use_groups(tensor=Group(rank, 4)):
            shares.append(get_alibi_slopes(12))
    assert [len(share) for share in shares] == [3, 3, 3, 3]
    assert [slope for share in shares for slope in share] == get_alibi_slopes(12)
    with use_groups(tensor=Group(0, 4)), pytest.raises(UsageError, match="num_attention_heads = 6"):
        get_alibi_slopes(6)


@pytest.mark.parametrize("backend", RUN_HERE)
def test_alibi_by_chunks_and_decodes(backend: str) -> None:
    """Six heads; the prompt in one step, in chunks and token by token: transformers' attention each time.

    transformers adds slope * key position, we slope * (key - query position): the softmax sees no difference.
    """
    heads, slopes = 6, get_alibi_slopes(6)
    query, key, value = (randn(LENGTH, heads * SIZE, seed=seed) for seed in range(3))
    alibi = build_alibi_tensor(torch.ones(1, LENGTH), heads, torch.float32)[None]
    module = SimpleNamespace(num_key_value_groups=1, training=False)
    expected, _ = gemma2_attention(module, *map(by_head, (query, key, value)), causal() + alibi, scaling=SCALE)
    for chunks in ([LENGTH], [4, 5, 2], [3, *[1] * 8]):
        layer, caches = finished(Attention(heads, SIZE, SCALE, alibi_slopes=slopes), backend=backend)
        outputs, start = [], 0
        for count in chunks:
            rows = slice(start, start + count)
            with forward_context(ForwardContext(attention=continued(start, count), kv_caches=caches)):
                outputs.append(layer(query[rows], key[rows], value[rows]))
            start += count
        torch.testing.assert_close(torch.cat(outputs), expected.reshape(LENGTH, -1), rtol=1e-5, atol=1e-5)


SINKS = nn.Parameter(randn(HEADS, seed=3), requires_grad=False)
ORACLES: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "plain": ({}, gemma2_attention),
    "soft-cap": ({"logits_soft_cap": 0.7}, lambda *args, **kw: gemma2_attention(*args, softcap=0.7, **kw)),
    "sinks": ({"sinks": SINKS}, gpt_oss_attention),
    "alibi": ({"alibi_slopes": bloom_slopes(HEADS)}, bloom_attention),
}


@pytest.mark.parametrize("backend", RUN_HERE)
@pytest.mark.parametrize("name", ORACLES)
def test_layer_is_transformers(name: str, backend: str) -> None:
    options, oracle = ORACLES[name]
    layer, caches = finished(Attention(HEADS, SIZE, SCALE, num_kv_heads=KV_HEADS, **options), backend=backend)
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, sinks=SINKS, training=False, head_dim=SIZE)
    expected, _ = oracle(module, *map(by_head, inputs()), causal(), scaling=SCALE)
    torch.testing.assert_close(run(layer, caches), expected.reshape(LENGTH, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", RUN_HERE)
def test_encoder_only(backend: str) -> None:
    layer, caches = finished(EncoderOnlyAttention(HEADS, SIZE, SCALE, KV_HEADS, prefix="attn"), backend=backend)
    assert layer.get_kv_cache_spec() is None
    assert caches == {}
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False)
    expected, _ = gemma2_attention(module, *map(by_head, inputs()), None, scaling=SCALE)
    torch.testing.assert_close(run(layer, caches), expected.reshape(LENGTH, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", RUN_HERE)
def test_cross_attention(backend: str) -> None:
    """Decoder queries over an encoder's seven tokens, which come with the first step and are kept for the second."""
    layer, caches = finished(Attention(HEADS, SIZE, SCALE, KV_HEADS, attn_type="encoder_decoder"), backend=backend)
    query, key, value = inputs()[0], randn(7, KV_HEADS * SIZE, seed=4), randn(7, KV_HEADS * SIZE, seed=5)
    heads = [x.view(1, len(x), -1, SIZE).transpose(1, 2) for x in (query, key, value)]
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False)
    expected, _ = gemma2_attention(module, *heads, None, scaling=SCALE)
    for given in ((key, value), (None, None)):
        step = replace(one_prompt(), encoder=one_prompt(7))
        with forward_context(ForwardContext(attention=step, kv_caches=caches)):
            torch.testing.assert_close(layer(query, *given), expected.reshape(LENGTH, -1), rtol=1e-5, atol=1e-5)


def test_heads_may_be_a_dimension_of_their_own() -> None:
    layer, caches = finished(Attention(HEADS, SIZE, SCALE, KV_HEADS))
    want = run(layer, caches)
    with forward_context(ForwardContext(attention=one_prompt(), kv_caches=caches)):
        got = layer(*(x.view(LENGTH, -1, SIZE) for x in inputs()))
    assert torch.equal(got, want)


def test_a_cache_is_shared_by_the_name_that_the_file_gives_a_layer() -> None:
    model = nn.Module()
    model.first = Attention(HEADS, SIZE, SCALE, prefix="model.layers.0.self_attn.attn")
    model.second = Attention(HEADS, SIZE, SCALE, kv_sharing_target_layer_name="model.layers.0.self_attn.attn")
    place(model, None)
    assert model.second.kv_sharing_target_layer_name == model.first.layer_name == "first"
    model.third = Attention(HEADS, SIZE, SCALE, kv_sharing_target_layer_name="layers.7")
    with pytest.raises(ConfigError, match="not there") as caught:
        place(model, None)
    assert caught.value.field == "third.kv_sharing_target_layer_name"


def test_a_sharing_layer_reads_its_targets_cache() -> None:
    owner, caches = finished(Attention(HEADS, SIZE, SCALE, KV_HEADS), name="layers.0.attn")
    sharer, nothing = finished(
        Attention(HEADS, SIZE, SCALE, KV_HEADS, kv_sharing_target_layer_name="layers.0.attn"), name="layers.1.attn"
    )
    assert nothing == {}
    query, key, value = inputs()
    with forward_context(ForwardContext(attention=one_prompt(), kv_caches=caches)):
        expected = owner(query, key, value)
        shared = sharer(query, torch.full_like(key, torch.nan), torch.full_like(value, torch.nan))
    torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-5)


def test_spec_and_cache_spec_come_from_the_arguments_and_the_scope() -> None:
    model = ModelConfig(
        model="tiny", architecture="T", hf_config=None, hf_text_config=None, dtype=torch.bfloat16, max_model_len=64
    )
    with build_scope(VllmConfig(model_config=model, cache_config=CacheConfig(sliding_window=32))):
        inherited = Attention(HEADS, SIZE, SCALE)
        own = Attention(
            num_heads=HEADS,
            head_size=SIZE,
            scale=SCALE,
            num_kv_heads=KV_HEADS,
            cache_config=CacheConfig(cache_dtype="float16"),
            quant_config=object(),
            per_layer_sliding_window=8,
            prefix="model.layers.0.self_attn.attn",
            attn_type="decoder",
            head_size_v=SIZE,
            use_alibi_sqrt=False,
            mm_prefix_clamp_sliding_window=False,
            chunk_lookback=None,
            logits_soft_cap=0.0,
        )
    assert inherited.get_kv_cache_spec() == KVCacheSpec(
        num_kv_heads=HEADS, head_size=SIZE, dtype=torch.bfloat16, sliding_window=32
    )
    assert own.get_kv_cache_spec() == KVCacheSpec(
        num_kv_heads=KV_HEADS, head_size=SIZE, dtype=torch.float16, sliding_window=8
    )
    assert own.spec.logits_soft_cap is None
    assert own.spec.attn_type is AttentionType.DECODER
    assert own.layer_name == ""


def test_a_given_backend_is_kept() -> None:
    assert Attention(HEADS, SIZE, SCALE, attn_backend=BACKENDS["reference"]).backend is BACKENDS["reference"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"use_alibi_sqrt": True}, "use_alibi_sqrt"),
        ({"mm_prefix_clamp_sliding_window": True}, "mm_prefix_clamp_sliding_window"),
        ({"chunk_lookback": 1}, "chunk_lookback"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
    ],
)
def test_what_no_backend_does_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Attention(HEADS, SIZE, SCALE, **options)
    assert caught.value.field == field


def test_the_engine_says_that_it_runs_decoders_only() -> None:
    layer, _ = finished(Attention(HEADS, SIZE, SCALE, attn_type="encoder_decoder"), name="decoder.0.encoder_attn")
    with pytest.raises(ModelError, match="runs decoders") as caught:
        bind_attention(nn.ModuleList([layer]), SimpleNamespace(), {})  # type: ignore[arg-type]
    assert (caught.value.error_code, caught.value.field) == ("UNSUPPORTED_LAYER", "decoder.0.encoder_attn")


def test_misuse() -> None:
    with pytest.raises(UsageError, match="cache_dtype"):
        Attention(HEADS, SIZE, SCALE, cache_config=CacheConfig(cache_dtype="fp4"))
    with pytest.raises(ConfigError, match="attn_type"):
        EncoderOnlyAttention(HEADS, SIZE, SCALE, attn_type="decoder")
    layer = Attention(HEADS, SIZE, SCALE, KV_HEADS)
    with pytest.raises(EngineError, match="not finished"):
        run(layer, {})
    layer, _ = finished(layer)
    with pytest.raises(EngineError, match=r"layers\.0\.attn"):
        run(layer, {})
    with pytest.raises(EngineError, match="no forward pass"):
        layer(*inputs())


def test_cache_ops() -> None:
    cache = torch.zeros(3, BLOCK, 2, KV_HEADS, SIZE, dtype=torch.bfloat16)
    key, value, slots = randn(5, KV_HEADS, SIZE), randn(5, KV_HEADS, SIZE, seed=1), torch.tensor([11, 0, 4, 7, 2])
    write_kv_cache(cache, key, value, slots)
    assert torch.equal(cache[2, 3, 0], key[0].bfloat16())
    assert torch.equal(cache[1, 0, 1], value[2].bfloat16())
    assert torch.equal(gather_kv_cache(cache, slots), torch.stack((key, value), 1).bfloat16())
    assert not cache[0, 1].any()
