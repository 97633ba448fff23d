"""Quantized weights on native kernels, beside torch's arithmetic with activations rounded as the kernels round them."""

import os
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from models import PROMPTS, checkpoint, differences, furthest, llm, said

from bestiary.nn.ops import quant
from bestiary.nn.ops.registry import OPS, Implementation
from bestiary.testing.gguf_file import write_gguf

products = pytest.importorskip("bestiary_cpu.products")
PackedCache = pytest.importorskip("bestiary_cpu.packed_cache").PackedCache

BLOCK = 32


def rounded(x):
    """Activations as products with quantized weights meet them: 8 bits in groups of 32."""
    groups = x.reshape(-1, BLOCK)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, torch.round(groups / scale), torch.zeros(()))
    return (codes * scale).reshape(x.shape)


def _after_rounding(product, x, **rest):
    return product(rounded(x.reshape(-1, x.shape[-1])).view(x.shape), **rest)


def near(got, want):
    """Whole models: a scale in fp16, or a sum on the other side of a rounding, is felt everywhere behind it. That one
    product is right to the last digits is for the tests of products."""
    found = differences(got, want)
    return found[len(found) // 2] < 0.05 and found[-1] < 0.5


@pytest.fixture
def torch_rounds(monkeypatch):
    """Torch's products with quantized weights round their activations, too."""

    def arrange(*names):
        for name in names:
            op = OPS[name]
            version = partial(_after_rounding, op.reference)
            monkeypatch.setitem(op.implementations, "reference", Implementation("reference", version, priority=-100))

    return arrange


def as_gguf(folder, kind):
    """The tiny Llama as a GGUF file whose matrices are of one type."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    path = folder / "model.gguf"
    write_gguf(path, "llama", model.state_dict(), model.config, kind=kind)
    return str(path)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_quantizing_while_loading(name, quantization, torch_rounds):
    path = checkpoint(name)
    torch_rounds("linear_int8", "linear_int4")
    with llm(path, quantization=quantization) as native:
        assert native.engine.ops[f"linear_{quantization}"] == "native"
        got = said(native)
        assert not native.engine.executor.runner.graphs.refused
    with llm(path, "torch", quantization=quantization) as plain:
        want = said(plain)
    assert near(got, want)


def test_scales_beyond_float16_are_left_to_torch(caplog):
    from bestiary_cpu.codes import int8, pack_int8

    weight = torch.randint(-127, 128, (8, 64), dtype=torch.int8)
    scale = torch.full((8,), 1e-9)
    assert pack_int8(weight, scale) is None
    assert "scales beyond float16" in caplog.text
    x = torch.randn(3, 64)
    assert torch.equal(int8(x, weight, scale), quant.linear_int8.reference(x, weight, scale))


def test_eight_bits_a_row():
    from bestiary_cpu import codes

    weight = torch.randint(-127, 128, (24, 96), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(0.01, 0.02, 24).half().float()
    x, bias = torch.randn(5, 96), torch.randn(24)
    got = codes.int8(x, codes.pack_int8(weight, scale), scale, bias)
    torch.testing.assert_close(got, quant.linear_int8.reference(rounded(x), weight, scale, bias), atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("grouped", [32, 64, 128])
def test_four_bits_in_groups(grouped):
    from bestiary_cpu import codes

    rng = np.random.default_rng(3)
    weight = torch.from_numpy(rng.integers(0, 256, (24, 64), np.uint8))
    scale = torch.from_numpy(rng.uniform(0.01, 0.02, (24, 128 // grouped)).astype(np.float16)).float()
    zero = torch.from_numpy(rng.integers(0, 16, (24, 128 // grouped), np.uint8))
    x, bias = torch.randn(5, 128), torch.randn(24)
    packed = codes.pack_int4(weight, scale, zero, grouped, None)
    got = codes.int4(x, packed, scale, zero, grouped, None, bias)
    want = quant.linear_int4.reference(rounded(x), weight, scale, zero, grouped, None, bias)
    torch.testing.assert_close(got, want, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1", "Q5_1"])
def test_a_file_keeps_its_blocks(kind, tmp_path, torch_rounds):
    """By itself where kernels read them; decoded where the user says so."""
    path = as_gguf(tmp_path, kind)
    torch_rounds("linear_gguf")
    with llm(path) as native, llm(path, "torch", quantization="gguf") as blocks:
        assert native.engine.vllm_config.quant_config.name == "gguf"
        assert native.engine.ops["linear_gguf"] == "native"
        assert near(said(native), said(blocks))
        alone = [said(native, [ids])[0] for ids in PROMPTS]
        assert said(native) == alone
    with llm(path, quantization="none") as decoded, llm(path, "torch") as plain:
        assert decoded.engine.vllm_config.quant_config is None
        assert furthest(said(decoded), said(plain)) < 2e-4


def test_an_engine_says_the_same_from_kept_weights(tmp_path, monkeypatch, caplog, capfd):
    """The second start maps what the first one packed; a damaged file is told, and made again."""
    cache = PackedCache(tmp_path / "packed", 2**30)
    monkeypatch.setattr(products, "packed_cache", lambda threads: cache)
    monkeypatch.setattr(products, "WORTH_BYTES", 1)
    path, answers = checkpoint("llama"), []
    for start in range(3):
        with llm(path, quantization="int8", progress=True) as engine:
            answers.append(said(engine))
        kept = sorted(cache.folder.iterdir())
        if start == 1:
            assert "made again" not in caplog.text
            os.truncate(kept[0], 100)
    assert answers[0] == answers[1] == answers[2]
    assert caplog.text.count("made again") == 1
    assert len(kept) > 4
    assert capfd.readouterr().err.count("packing weights") == 3


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", None)])
def test_a_file_of_floats_keeps_their_width(kind, dtype, tmp_path):
    path = as_gguf(tmp_path, kind)
    with llm(path, kv_cache_dtype="float32") as native, llm(path, "torch", dtype="float32") as plain:
        assert native.engine.vllm_config.model_config.weights_dtype is dtype
        layer = native.engine.executor.runner.model.model.layers[0].mlp.down_proj
        assert layer.weight.form == kind
        assert furthest(said(native), said(plain)) < 2e-4
