"""An fp8 KV cache: what it rounds, by which scales, and where these come from."""

import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from bestiary import LLM
from bestiary.api.config import CacheConfig
from bestiary.api.errors import UsageError, WeightsMismatch
from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.choice import BACKENDS, choose_backend
from bestiary.nn.attention.layer import Attention
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.scales import CacheScales
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.ops.attention import write_kv_cache
from bestiary.nn.placement import place
from bestiary.testing.logits import prompt_logits

RUN_HERE = sorted(
    name
    for name, each in BACKENDS.items()
    if each.why_not("cpu", AttentionSpec(num_heads=1, num_kv_heads=1, head_size=16, scale=1.0)) is None
)

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HEADS, KV_HEADS, SIZE, LENGTH = 4, 2, 16, 11
STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3}
"""Half the distance of neighbours, relative to the smaller one."""


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_numbers_are_rounded_clamped_and_never_become_finite(dtype):
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    key = torch.logspace(-3, 9, 240).view(15, 1, 16) * randn(15, 1, 16).sign()
    value = key.flip(0).clone()
    value[0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    cache = torch.zeros(4, 4, 2, 1, 16, dtype=dtype)
    write_kv_cache(cache, key, value, torch.arange(15))
    kept = cache.flatten(0, 1)[:15].float()
    assert kept[0, 1, 0, :3].isnan().all() and int(kept.isnan().sum()) == 3
    assert not kept.isinf().any()
    bound = (key.abs() * STEP[dtype]).clamp_min(smallest * STEP[dtype])
    assert ((kept[:, 0] - key.clamp(-largest, largest)).abs() <= bound).all()


def step(start, count):
    length = start + count
    return AttentionMetadata(
        query_start=torch.tensor([0, count], dtype=torch.int32), seq_lens=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.arange(4, dtype=torch.int32)[None], slot_mapping=torch.arange(start, length),
        query_lens_host=(count,), seq_lens_host=(length,), max_query_len=count, max_seq_len=length,
        num_decodes=int(count == 1), block_size=4,
    )  # fmt: skip


def attend(layer, steps, query, key, value):
    spec = layer.get_kv_cache_spec()
    caches = {layer.layer_name: torch.zeros(*layer.backend.cache_shape(spec, 4, 4), dtype=spec.dtype)}
    parts, start = [], 0
    for count in steps:
        rows = slice(start, start + count)
        with forward_context(ForwardContext(step(start, count), caches)):
            parts.append(layer(query[rows], key[rows], value[rows]))
        start += count
    return torch.cat(parts)


def layer_of(dtype, backend, **options):
    layer = Attention(HEADS, SIZE, SIZE**-0.5, KV_HEADS, cache_config=CacheConfig(cache_dtype=dtype), **options)
    layer.layer_name, layer.backend = "attn", BACKENDS[backend]
    return layer


@pytest.mark.parametrize("backend", RUN_HERE)
@pytest.mark.parametrize(("name", "dtype"), [("fp8", E4M3), ("fp8_e5m2", E5M2)])
@pytest.mark.parametrize("options", [{}, {"logits_soft_cap": 5.0}, {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]}])
def test_attention_is_that_over_rounded_keys_and_values(name, dtype, backend, options):
    """By scales that are no powers of two; and within the format's bound of the unrounded."""
    query, key, value = (
        randn(LENGTH, HEADS * SIZE),
        30 * randn(LENGTH, KV_HEADS * SIZE, seed=1),
        1e3 * randn(LENGTH, KV_HEADS * SIZE, seed=2),
    )
    narrow, wide = layer_of(name, backend, **options), layer_of("float32", backend, **options)
    narrow.k_scale, narrow.v_scale = 0.3, 9.0
    kept_key, kept_value = ((each / scale).to(dtype).float() * scale for each, scale in ((key, 0.3), (value, 9.0)))
    assert narrow.get_kv_cache_spec().bytes_per_token * 4 == wide.get_kv_cache_spec().bytes_per_token
    for steps in ([LENGTH], [4, 3, 1, 1, 2]):
        got = attend(narrow, steps, query, key, value)
        torch.testing.assert_close(got, attend(wide, steps, query, kept_key, kept_value), atol=2e-2, rtol=1e-5)
    exact = attend(wide, [LENGTH], query, kept_key, value)
    assert float((got - exact).abs().max()) <= STEP[dtype] * float(value.abs().max())


def test_an_int8_cache_scales_by_rows_and_has_no_place_here():
    layer = layer_of("int8", "torch")
    assert layer.get_kv_cache_spec().bytes_per_token == 2 * KV_HEADS * (SIZE + 4) and not layer.scales_cache
    with pytest.raises(UsageError, match="no attention backend can run this model") as caught:
        choose_backend(None, "cpu", [layer.spec])
    assert list(caught.value.details) == [
        "triton: for CUDA",
        *(f"{name}: has no place for the scales of an int8 cache; fp8 needs none" for name in ("torch", "reference")),
    ]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(3):
            block = nn.Module()
            block.self_attn = nn.Module()
            shared = None if index < 2 else "layers.0.self_attn.attn"
            options = {"prefix": f"layers.{index}.self_attn.attn", "kv_sharing_target_layer_name": shared}
            block.self_attn.attn = Attention(2, 4, 0.5, cache_config=CacheConfig(cache_dtype="fp8"), **options)
            self.layers.append(block)
        place(self, None)


NAMES = [
    ("self_attn.k_scale", "self_attn.v_scale"),
    ("self_attn.attn.k_scale", "self_attn.attn.v_scale"),
    ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    ("self_attn.qkv_proj.k_scale", "self_attn.qkv_proj.v_scale"),
]


def take(model, tensors, **options):
    scales = CacheScales(model, lambda name: name.removeprefix("model."))
    return list(scales.taken(iter(tensors.items()))), scales.notices()


@pytest.mark.parametrize(("key", "value"), NAMES)
def test_scales_are_found_under_every_name(key, value):
    model = Model()
    tensors = {f"model.layers.{index}.{key}": torch.tensor(0.5 + index) for index in range(2)}
    tensors |= {f"model.layers.{index}.{value}": torch.tensor([2.0 + index]) for index in range(2)}
    others = dict.fromkeys(("layers.0.self_attn.q_proj.output_scale", "layers.0.weight_scale"), torch.ones(()))
    rest, notices = take(model, tensors | others)
    assert [name for name, _ in rest] == list(others) and not notices
    found = [(each.self_attn.attn.k_scale, each.self_attn.attn.v_scale) for each in model.layers]
    assert found == [(0.5, 2.0), (1.5, 3.0), (0.5, 2.0)]  # the last layer reads the first one's cache


def test_one_scale_for_both_and_what_is_missing_is_told():
    model = Model()
    tensors = {"layers.0.self_attn.kv_scale": torch.tensor(0.25), "layers.1.self_attn.q_scale": torch.tensor(3.0)}
    rest, (unused, missing) = take(model, tensors)
    assert not rest and model.layers[0].self_attn.attn.k_scale == model.layers[0].self_attn.attn.v_scale == 0.25
    assert "q_scale" in unused and "not in fp8" in unused
    assert "lacks scales for 1 of 2 layers" in missing


@pytest.mark.parametrize("wrong", [0.0, -1.0, torch.nan, torch.inf, [1.0, 2.0]])
def test_a_scale_is_one_positive_number(wrong):
    with pytest.raises(WeightsMismatch, match="one positive number a layer") as caught:
        take(Model(), {"layers.1.self_attn.v_scale": torch.tensor(wrong)})
    assert caught.value.field == "layers.1.self_attn.v_scale"


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A tiny Llama whose keys need scales, which its checkpoint has."""
    folder = tmp_path_factory.mktemp("scaled")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for index in range(2):
        tensors[f"model.layers.{index}.self_attn.k_scale"] = torch.tensor(0.02)
        tensors[f"model.layers.{index}.self_attn.v_scale"] = torch.tensor(0.01)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_scales_of_a_checkpoint_reach_its_layers(scaled, caplog):
    ids = list(range(3, 60))

    def run(**options):
        return LLM(scaled, dtype="float32", skip_tokenizer_init=True, progress=False, **options)

    with caplog.at_level(logging.WARNING, "bestiary"):
        want = prompt_logits(run(), ids)
        assert "k_scale, v_scale are left out: kv_cache_dtype=fp8 would use them" in caplog.text
        caplog.clear()
        narrow = run(kv_cache_dtype="fp8")
        assert not caplog.text
    layers = [module for module in narrow.engine.executor.runner.model.modules() if isinstance(module, Attention)]
    assert [(each.k_scale, each.v_scale) for each in layers] == [(pytest.approx(0.02), pytest.approx(0.01))] * 2
    got = prompt_logits(narrow, ids)
    assert 0 < float((got - want).norm()) < 0.15 * float(want.norm())
    torch.testing.assert_close(prompt_logits(narrow, ids, chunk=7), got, atol=1e-4, rtol=1e-4)
