"""Attention layers that norm and rotate what they are given, beside the same done step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bestiary.api.config import CacheConfig
from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn import Attention, GemmaRMSNorm, LayerNorm, RMSNorm, get_rope
from bestiary.nn.attention.choice import BACKENDS
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.reference import ReferenceBackend
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.ops.registry import OPS, Implementation, Target, choose_ops

HEADS, KV_HEADS, SIZE, LENGTH, BLOCK = 4, 2, 16, 7, 4
NORMS = {"none": None, "rms": RMSNorm, "gemma": GemmaRMSNorm}


class PagesOnly(ReferenceBackend):
    """Reads everything from the pages, as kernels for GPUs do."""

    name = "pages only"
    reads_pages_only = True


def prompt() -> AttentionMetadata:
    return AttentionMetadata(
        query_start=torch.tensor([0, LENGTH], dtype=torch.int32), seq_lens=torch.tensor([LENGTH], dtype=torch.int32),
        block_tables=torch.tensor([[2, 0]], dtype=torch.int32), slot_mapping=torch.tensor([8, 9, 10, 11, 0, 1, 2]),
        query_lens_host=(LENGTH,), seq_lens_host=(LENGTH,), max_query_len=LENGTH, max_seq_len=LENGTH, num_decodes=0,
        block_size=BLOCK,
    )  # fmt: skip


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(kind: str, seed: int) -> nn.Module | None:
    made = NORMS[kind]
    if made is None:
        return None
    layer = made(SIZE)
    layer.weight = nn.Parameter(randn(SIZE, seed=seed), requires_grad=False)
    return layer


def attended(layer: Attention, run: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What comes of one prompt, and what its layer's cache then holds."""
    spec = layer.get_kv_cache_spec()
    cache = torch.zeros(*layer.backend.cache_shape(spec, 3, BLOCK), dtype=spec.dtype)
    rows = randn(LENGTH, (HEADS + 2 * KV_HEADS) * SIZE)
    with forward_context(ForwardContext(prompt(), {"attn": cache})):
        return run(torch.arange(LENGTH), *rows.split([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE], -1)), cache


def layer_on(backend: object, cache_dtype: str = "auto", **options: object) -> Attention:
    layer = Attention(
        HEADS, SIZE, SIZE**-0.5, KV_HEADS, cache_config=CacheConfig(cache_dtype=cache_dtype), **options
    )  # fmt: skip
    layer.layer_name, layer.backend = "attn", backend
    return layer


@pytest.mark.parametrize("backend", [PagesOnly(), BACKENDS["torch"], BACKENDS["reference"]], ids=lambda each: each.name)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("cache_dtype", "scale"), [("auto", 1.0), ("fp8", 0.5)])
def test_the_layer_does_what_is_done_step_by_step(
    backend: object, kind: str, cache_dtype: str, scale: float
) -> None:  # fmt: skip
    rope = get_rope(SIZE, max_position=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    q_norm, k_norm = norm(kind, 1), norm(kind, 2)
    whole = layer_on(backend, cache_dtype, rotary_emb=rope, q_norm=q_norm, k_norm=k_norm)
    plain = layer_on(backend, cache_dtype)
    for layer in (whole, plain):
        layer.k_scale, layer.v_scale = scale, scale / 2

    def by_steps(positions: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if q_norm is not None and k_norm is not None:
            query = q_norm(query.view(LENGTH, HEADS, SIZE)).flatten(1)
            key = k_norm(key.view(LENGTH, KV_HEADS, SIZE)).flatten(1)
        return plain(*rope(positions, query, key), value)

    found = attended(whole, lambda positions, *rows: whole(*rows, positions=positions))
    wanted = attended(plain, by_steps)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1].view(torch.uint8), wanted[1].view(torch.uint8))
    assert bool(found[1].float().any())


def test_one_launch_where_there_were_four() -> None:
    """With norms, rotation and cache: by a backend that reads pages only the layer calls one op, another's two."""
    called: list[str] = []

    def counting(name: str) -> Implementation[..., object]:
        def run(*args: object) -> object:
            called.append(name)
            return OPS[name].reference(*args)

        return Implementation("counting", run, priority=99)

    counted = ("rms_norm", "rotary_embedding", "qk_norm_rope", "qk_norm_rope_cache", "write_kv_cache")
    rope = get_rope(SIZE, max_position=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    ops = choose_ops(Target("cpu", torch.float32), {}, {f"{name}/counting": counting(name) for name in counted})
    layer = layer_on(PagesOnly(), rotary_emb=rope, q_norm=norm("rms", 1), k_norm=norm("rms", 2))
    with ops.active():
        attended(layer, lambda positions, *rows: layer(*rows, positions=positions))
    parts = ["rms_norm", "rms_norm", "rotary_embedding"]
    assert called == ["qk_norm_rope_cache", "qk_norm_rope", *parts, "write_kv_cache"]  # the reference is made of these
    called.clear()
    layer.backend = BACKENDS["torch"]
    with ops.active():
        attended(layer, lambda positions, *rows: layer(*rows, positions=positions))
    assert called == ["qk_norm_rope", *parts, "write_kv_cache"]


def test_the_modules_stay_the_models() -> None:
    rope = get_rope(SIZE, max_position=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    layer = layer_on(PagesOnly(), rotary_emb=rope, q_norm=norm("rms", 1), k_norm=norm("rms", 2))
    assert not list(layer.children()) and not list(layer.parameters())


def test_norms_that_are_refused() -> None:
    rope = get_rope(SIZE, max_position=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    with pytest.raises(ConfigError, match="together with a rotary embedding"):
        layer_on(PagesOnly(), q_norm=norm("rms", 1), k_norm=norm("rms", 2))
    for q_norm, k_norm in (
        (norm("rms", 1), None),
        (norm("rms", 1), norm("gemma", 1)),
        (LayerNorm(SIZE), LayerNorm(SIZE)),
        (RMSNorm(HEADS * SIZE), RMSNorm(KV_HEADS * SIZE)),
        (RMSNorm(SIZE, eps=1e-5), RMSNorm(SIZE, eps=1e-6)),
    ):
        with pytest.raises(ConfigError, match="norms of each head"):
            layer_on(PagesOnly(), rotary_emb=rope, q_norm=q_norm, k_norm=k_norm)


def test_a_rotating_layer_needs_positions() -> None:
    rope = get_rope(SIZE, max_position=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    layer = layer_on(PagesOnly(), rotary_emb=rope)
    with pytest.raises(EngineError, match="positions"):
        attended(layer, lambda _, *rows: layer(*rows))
