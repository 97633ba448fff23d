"""Rotary embedding against transformers: angles of every scaling, both layouts, and the rules we chose ourselves."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved_rotation
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bestiary.api.config import ModelConfig, VllmConfig
from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.prompt import PromptDependent
from bestiary.nn.rotary import RotaryEmbedding, embedding, get_rope
from bestiary.nn.rotary import factory as rope_factory
from bestiary.nn.scope import build_scope

HEAD = 32
LENGTH = 256
HALF = HEAD // 2
SHORT = [1.0 + 0.05 * i for i in range(HALF)]
LONG = [1.0 + 0.5 * i for i in range(HALF)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "large theta": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn attention factor": {**YARN, "attention_factor": 0.7},
    "yarn mscale": {**YARN, "mscale": 0.9, "mscale_all_dim": 0.4},
    "yarn betas": {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    "longrope": {**LONGROPE, "original_max_position_embeddings": LENGTH},
    "longrope attention factor": {**LONGROPE, "original_max_position_embeddings": LENGTH, "attention_factor": 1.3},
}


def llama_config(parameters: dict[str, Any], max_position: int = LENGTH) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        head_dim=HEAD,
        max_position_embeddings=max_position,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )


def vllm_config(max_model_len: int) -> VllmConfig:
    model = ModelConfig(
        model="tiny",
        architecture="Tiny",
        hf_config=None,
        hf_text_config=None,
        dtype=torch.float32,
        max_model_len=max_model_len,
    )
    return VllmConfig(model_config=model)


def built(max_model_len: int, **kwargs: Any) -> RotaryEmbedding:
    with build_scope(vllm_config(max_model_len)):
        return get_rope(HEAD, **kwargs)


def tables(rope: RotaryEmbedding, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = rope.cos_sin_cache[positions].chunk(2, -1)
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scaling_is_transformers(name: str, dtype: torch.dtype) -> None:
    parameters = {"rope_theta": 10000.0, **SCALINGS[name]}
    positions = torch.arange(LENGTH)
    query, key = randn(LENGTH, 4 * HEAD, dtype=dtype), randn(LENGTH, 2 * HEAD, dtype=dtype)
    cos, sin = LlamaRotaryEmbedding(llama_config(parameters))(query, positions[None])
    rope = get_rope(HEAD, max_position=LENGTH, rope_parameters=parameters)
    ours = tables(rope, positions)
    assert torch.equal(ours[0].to(dtype), cos[0])
    assert torch.equal(ours[1].to(dtype), sin[0])
    by_head = query.view(1, LENGTH, 4, HEAD), key.view(1, LENGTH, 2, HEAD)
    expected = apply_rotary_pos_emb(*by_head, cos, sin, unsqueeze_dim=2)
    rotated = rope(positions, query, key)
    assert torch.equal(rotated[0], expected[0].reshape(query.shape))
    assert torch.equal(rotated[1], expected[1].reshape(key.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interleaved_layout(dtype: torch.dtype) -> None:
    positions = torch.randint(0, LENGTH, (9,), generator=torch.Generator().manual_seed(0))
    packed = randn(9, 4 * HEAD, dtype=dtype)
    query, key = packed.split((3 * HEAD, HEAD), -1)
    rope = get_rope(HEAD, max_position=LENGTH, is_neox_style=False, dtype=torch.float32)
    cos, sin = (x.repeat_interleave(2, -1)[None] for x in rope.cos_sin_cache[positions].chunk(2, -1))
    by_head = query.reshape(1, 9, 3, HEAD), key.reshape(1, 9, 1, HEAD)
    expected = interleaved_rotation(*by_head, cos, sin, unsqueeze_dim=2)
    rotated = rope(positions, query, key)
    assert torch.equal(rotated[0], expected[0].reshape(9, -1))
    assert torch.equal(rotated[1], expected[1].reshape(9, -1))
    assert rope(positions, query)[1] is None


@pytest.mark.parametrize("is_neox_style", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        {"rotary_dim": 8},
        {"partial_rotary_factor": 0.25},
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        {"rotary_dim": HEAD, "partial_rotary_factor": 0.25},
    ],
)
def test_partial_rotation(how: dict[str, Any], is_neox_style: bool) -> None:
    rope = get_rope(HEAD, max_position=LENGTH, is_neox_style=is_neox_style, **how)
    small = get_rope(8, max_position=LENGTH, is_neox_style=is_neox_style)
    positions, query = torch.tensor([3, 200, 0]), randn(3, 2 * HEAD)
    rotated = rope(positions, query)[0].view(3, 2, HEAD)
    heads = query.view(3, 2, HEAD)
    assert torch.equal(rotated[..., 8:], heads[..., 8:])
    assert torch.equal(rotated[..., :8].reshape(3, -1), small(positions, heads[..., :8].reshape(3, -1))[0])


def test_proportional_is_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    inv_freq, _ = ROPE_INIT_FUNCTIONS["proportional"](llama_config(parameters))
    rope = get_rope(HEAD, max_position=LENGTH, rope_parameters=parameters)
    angles = torch.arange(LENGTH).float()[:, None] * inv_freq
    assert torch.equal(rope.cos_sin_cache, torch.cat((angles.cos(), angles.sin()), -1))


def scale_of(parameters: dict[str, Any]) -> float:
    """The factor on cosines: the table's first row is that of angle zero."""
    return float(get_rope(HEAD, LENGTH, rope_parameters=parameters).cos_sin_cache[0, 0])


def test_factors_that_only_some_files_give() -> None:
    """`attn_factor` multiplies YaRN's own; LongRoPE takes the `…_mscale` of the set it uses (as PhiMoE has it)."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    assert scale_of(yarn | {"attn_factor": 2.0}) == pytest.approx(2 * scale_of(yarn))
    lists = {"short_factor": [1.0] * HALF, "long_factor": [2.0] * HALF, "short_mscale": 1.3, "long_mscale": 1.7}
    long = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **lists}
    assert scale_of(long | {"original_max_position_embeddings": 64}) == pytest.approx(1.7)
    assert scale_of(long | {"original_max_position_embeddings": LENGTH}) == pytest.approx(1.3)
    for more in ({"extrapolation_factor": 0.5}, {"apply_yarn_scaling": False}):
        with pytest.raises(ConfigError, match="extrapolation"):
            scale_of(yarn | more)


def test_multi_axis_positions_of_text_are_plain_ones() -> None:
    plain = get_rope(HEAD, LENGTH, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    text = get_rope(HEAD, LENGTH, rope_parameters={"rope_type": "mrope", "rope_theta": 1e4, "mrope_section": [4, 2, 2]})
    assert torch.equal(text.cos_sin_cache, plain.cos_sin_cache)


def test_older_spellings() -> None:
    new = get_rope(HEAD, max_position=LENGTH, rope_parameters={**YARN, "rope_theta": 5e5})
    scaling = {**YARN, "type": "yarn"}
    del scaling["rope_type"]
    old = get_rope(HEAD, LENGTH, True, rotary_dim=HEAD, base=5e5, rope_scaling=scaling)
    assert torch.equal(old.cos_sin_cache, new.cos_sin_cache)


def test_frequency_factors_of_gguf_divide() -> None:
    """llama.cpp writes Llama 3's scaling as divisors: those of transformers' llama3 give its angles."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](llama_config(SCALINGS["llama3"]))
    plain = 1.0 / (10000.0 ** (torch.arange(0, HEAD, 2).float() / HEAD))
    rope = get_rope(HEAD, max_position=LENGTH, rope_parameters={"freq_factors": (plain / scaled).tolist()})
    reference = get_rope(HEAD, max_position=LENGTH, rope_parameters=SCALINGS["llama3"])
    torch.testing.assert_close(rope.cos_sin_cache, reference.cos_sin_cache, rtol=0, atol=1e-4)


def test_dynamic_ntk_is_transformers_decoding_past_the_original_length() -> None:
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    rope = built(LENGTH, max_position=64, rope_parameters=parameters)
    theirs = LlamaRotaryEmbedding(llama_config(parameters, max_position=64))
    x = torch.zeros(1)
    for position in (0, 40, 63, 64, 65, 100, 255):
        cos, sin = theirs(x, torch.tensor([[position]]))
        ours = tables(rope, torch.tensor([position]))
        torch.testing.assert_close(ours[0], cos[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(ours[1], sin[0], rtol=0, atol=2e-5)
    plain = get_rope(HEAD, max_position=64)
    assert torch.equal(rope.cos_sin_cache[:64], plain.cos_sin_cache)
    assert not torch.allclose(rope.cos_sin_cache[255], get_rope(HEAD, max_position=LENGTH).cos_sin_cache[255])


@pytest.mark.parametrize("max_model_len", [64, 65])
def test_longrope_switches_by_max_model_len(max_model_len: int) -> None:
    parameters = {**LONGROPE, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    rope = built(max_model_len, max_position=LENGTH, rope_parameters=parameters)
    positions = torch.arange(max_model_len)
    cos, sin = LlamaRotaryEmbedding(llama_config(parameters))(torch.zeros(1), positions[None])
    ours = tables(rope, positions)
    assert torch.equal(ours[0], cos[0])
    assert torch.equal(ours[1], sin[0])


def test_layers_of_one_scope_share_and_nothing_leaks() -> None:
    gc.collect()
    before = len(rope_factory._shared)
    with build_scope(vllm_config(48)):
        one = get_rope(HEAD, max_position=LENGTH, rope_parameters=dict(YARN))
        two = get_rope(HEAD, max_position=LENGTH, rope_parameters=dict(YARN))
        other = get_rope(HEAD, max_position=LENGTH)
    assert one is two
    assert other is not one
    assert one.cos_sin_cache.shape == (48, HEAD)
    assert one.cos_sin_cache.dtype is torch.float32
    assert not one.cos_sin_cache.is_meta
    assert list(one.state_dict()) == []
    with build_scope(vllm_config(48)):
        assert get_rope(HEAD, max_position=LENGTH, rope_parameters=dict(YARN)) is not one
    del one, two, other
    gc.collect()
    assert len(rope_factory._shared) == before


def metadata() -> AttentionMetadata:
    empty = torch.zeros(0, dtype=torch.int32)
    return AttentionMetadata(empty, empty, empty, empty.long(), (), (), 0, 0, 0, 16)


def test_rows_are_gathered_once_a_step_and_never_reused() -> None:
    rope = get_rope(HEAD, max_position=LENGTH)
    positions, query = torch.tensor([5, 9]), randn(2, HEAD)
    expected = rope(positions, query)[0]
    with forward_context(ForwardContext(attention=metadata(), kv_caches={})):
        first = rope.rows(positions, torch.float32)
        assert rope.rows(positions, torch.float32)[0] is first[0]
        assert rope.rows(positions, torch.bfloat16)[0].dtype is torch.bfloat16
        assert torch.equal(rope(positions, query)[0], expected)
        assert not torch.equal(rope.rows(positions + 1, torch.float32)[0], first[0])
    positions.add_(1)  # a runner may refill the same tensor for the next step
    with forward_context(ForwardContext(attention=metadata(), kv_caches={})):
        assert torch.equal(rope.rows(positions, torch.float32)[0][0], rope.rows(torch.tensor([6]), torch.float32)[0][0])


def by_prompt(length: int) -> RotaryEmbedding:
    """For prompts of up to 64 tokens, up to 128, up to 256 …"""
    parameters = {"rope_type": "dynamic_by_prompt", "original_max_position_embeddings": 64}
    return get_rope(HEAD, max_position=length, rope_parameters=parameters)


@pytest.mark.parametrize("prompt", [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300])
def test_frequencies_by_prompt_are_the_papers(prompt: int) -> None:
    alpha = max(2 ** math.ceil(math.log2(prompt / 64) + 1) - 1, 1)
    plain = get_rope(HEAD, max_position=300, base=10000.0 * alpha ** (HEAD / (HEAD - 2)))
    query, positions = randn(7, HEAD), torch.tensor([0, 250, 299, 3, 4, 0, 1])
    step = replace(metadata(), query_start=torch.tensor([0, 3, 5, 7]), prompt_lens=torch.tensor([prompt, 2, prompt]))
    with forward_context(ForwardContext(attention=step, kv_caches={})):
        ours = by_prompt(300)(positions, query)[0]
    theirs = plain(positions, query)[0]
    unscaled = get_rope(HEAD, max_position=300)(positions, query)[0]
    assert torch.equal(ours, torch.cat((theirs[:3], unscaled[3:5], theirs[5:])))


def test_only_prompts_of_one_class_may_share_keys() -> None:
    rope = by_prompt(300)
    assert isinstance(rope, PromptDependent)
    assert [rope.cache_salt(length) for length in (1, 64, 65, 128, 129, 256, 257)] == [0, 0, 1, 1, 2, 2, 3]
    assert not isinstance(get_rope(HEAD), PromptDependent)


def test_frequencies_by_prompt_are_not_guessed() -> None:
    rope, positions = by_prompt(128), torch.tensor([1, 2])
    with pytest.raises(EngineError, match="no forward pass"):
        rope(positions, randn(2, HEAD))
    with (
        forward_context(ForwardContext(attention=metadata(), kv_caches={})),
        pytest.raises(EngineError, match="how long each prompt is"),
    ):
        rope(positions, randn(2, HEAD))


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1.0}}, "factor"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta"),
        ({"rope_parameters": {**LONGROPE, "long_factor": [1.0], "original_max_position_embeddings": 8}}, "long_factor"),
        ({"rope_parameters": {"freq_factors": [1.0, 2.0]}}, "freq_factors"),
        ({"dual_chunk_attention_config": {"chunk_size": 4}}, "dual_chunk_attention_config"),
        ({"rope_parameters": {"rope_theta": 1}}, "rope_theta"),
        ({"rope_parameters": {**YARN, "beta_fast": "32"}}, "beta_fast"),
        ({"rope_parameters": {**YARN, "attention_factor": -1}}, "attention_factor"),
        ({"rope_parameters": {"freq_factors": [0.0] * HALF}}, "freq_factors"),
        ({"rope_parameters": {"partial_rotary_factor": "half"}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "rotary_dim": 2}, "rotary_dim"),
        ({"rope_parameters": {"rope_type": "dynamic_by_prompt"}, "rotary_dim": 2}, "rotary_dim"),
        ({"rotary_dim": 7}, "rotary_dim"),
        ({"partial_rotary_factor": 1.5}, "rotary_dim"),
    ],
)
def test_refusals_name_the_field(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_rope(HEAD, max_position=LENGTH, **kwargs)
    assert field in str(caught.value.field)


def test_multi_axis_positions_are_refused() -> None:
    rope = get_rope(HEAD, max_position=LENGTH, mrope_positions_factor=4, rope_parameters={"mrope_section": [4, 6, 6]})
    with pytest.raises(EngineError, match="one position a token"):
        rope(torch.zeros(3, 2, dtype=torch.long), randn(2, HEAD))


def test_heads_of_their_own_are_rotated_as_flat_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of the op are given flat rows, whatever the layer was given; each comes back as it was."""
    given: list[int] = []
    rotate = embedding.rotary_embedding

    def noted(query: torch.Tensor, key: torch.Tensor | None, *more: Any) -> Any:
        given.extend(each.dim() for each in (query, key) if each is not None)
        return rotate(query, key, *more)

    monkeypatch.setattr(embedding, "rotary_embedding", noted)
    rope, positions = get_rope(HEAD, max_position=LENGTH), torch.arange(9)
    wide = randn(9, 4, HEAD + 8)
    query, key = wide[..., 8:], wide[:, :1, 8:]
    turned, turned_key = rope(positions, query, key)
    flat, flat_key = rope(positions, query.flatten(1), key.flatten(1))
    assert torch.equal(turned.flatten(1), flat) and torch.equal(turned_key.flatten(1), flat_key)
    assert (turned.shape, turned_key.shape, set(given)) == (query.shape, key.shape, {2})
    assert torch.equal(rope(positions, query)[0], turned)
