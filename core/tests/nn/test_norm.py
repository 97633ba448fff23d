"""Norms against transformers' own layers, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm as HfGemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bestiary.nn.norm import GemmaRMSNorm, LayerNorm, RMSNorm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 576), (16, 576), (3, 4, 64)]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    for name, parameter in list(layer.named_parameters()):
        assert parameter.is_meta
        assert not parameter.requires_grad
        setattr(layer, name, nn.Parameter(randn(*parameter.shape, dtype=dtype, seed=len(name)), requires_grad=False))
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_is_llamas(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours = filled(RMSNorm(shape[-1], eps=1e-5), dtype)
    theirs = LlamaRMSNorm(shape[-1], eps=1e-5)
    theirs.weight = ours.weight
    x, residual = randn(*shape, dtype=dtype) * 3, randn(*shape, dtype=dtype, seed=1)
    assert torch.equal(ours(x), theirs(x))
    normed, added = ours(x, residual)
    assert torch.equal(added, residual + x)
    assert torch.equal(normed, theirs(residual + x))
    assert torch.equal(x, randn(*shape, dtype=dtype) * 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemmas(dtype: torch.dtype) -> None:
    ours = filled(GemmaRMSNorm(64, eps=1e-6), dtype)
    theirs = HfGemmaRMSNorm(64)
    theirs.weight = ours.weight
    x, residual = randn(5, 64, dtype=dtype), randn(5, 64, dtype=dtype, seed=1)
    assert torch.equal(ours(x), theirs(x))
    normed, added = ours(x, residual)
    assert torch.equal(normed, theirs(x + residual))
    assert torch.equal(added, x + residual)


def test_rms_norm_without_weight_and_with_wider_weight() -> None:
    x = randn(4, 32, dtype=torch.bfloat16)
    bare = RMSNorm(32, has_weight=False)
    assert list(bare.parameters()) == []
    unit = LlamaRMSNorm(32, eps=1e-6).to(torch.bfloat16)
    assert torch.equal(bare(x), unit(x))
    wide = RMSNorm(hidden_size=32, eps=1e-6, dtype=torch.float32)
    assert wide.weight.dtype is torch.float32
    assert filled(wide, torch.float32)(x).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype) -> None:
    ours = filled(LayerNorm(48, eps=1e-5), dtype)
    x = randn(7, 48, dtype=dtype)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = scaled * ours.weight.double() + ours.bias.double()
    torch.testing.assert_close(ours(x), expected.to(dtype))
    assert list(LayerNorm(48, elementwise_affine=False).parameters()) == []
    assert LayerNorm(48, bias=False).bias is None
    wide = filled(LayerNorm(48, eps=1e-5, dtype=torch.float32), torch.float32)
    assert wide(x).dtype is dtype


@pytest.mark.parametrize("size", [64, 576])
def test_rows_do_not_depend_on_the_batch(size: int) -> None:
    layer = filled(RMSNorm(size), torch.float32)
    x = randn(512, size, dtype=torch.float32)
    whole = layer(x)
    for start, stop in ((0, 1), (7, 24), (200, 500)):
        assert torch.equal(layer(x[start:stop].clone()), whole[start:stop])
