"""Checkpoints that other libraries wrote, against what those libraries compute with them."""

import json

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
import transformers
from bitsandbytes.functional import dequantize_4bit
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from bestiary.nn.quant.compressed_tensors import CompressedTensorsConfig

from . import tiny
from .conftest import HIDDEN, SHAPES, WIDTH

BITSANDBYTES = {
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
EVEN = {"intermediate_size": 128}
"""The library's own product fails on a CPU where a row is no whole number of blocks."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    tiny.llama(**EVEN).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", list(BITSANDBYTES))
def test_bitsandbytes(kind, plain, tmp_path):
    """Nearly what the library computes, which rounds activations; exactly what its weights mean."""
    config = transformers.BitsAndBytesConfig(**BITSANDBYTES[kind], bnb_4bit_compute_dtype=torch.float16)
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    meant = tiny.llama(**EVEN)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
                meant.get_submodule(name).weight.copy_(library_weight(layer))
    got = tiny.ours(tmp_path)
    assert tiny.off(got, tiny.theirs(meant)) < 1e-5
    assert 0 < tiny.off(got, tiny.theirs(model)) < 0.02


def library_weight(layer):
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        state = layer.weight.quant_state
        state.dtype = torch.float32
        return dequantize_4bit(layer.weight.data, state)
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        return layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    return layer.weight


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
E4M3 = {"num_bits": 8, "type": "float"}
TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
SCHEMES = {
    "W4A16": ("pack-quantized", INT4, None),
    "W4A16 with zero points": ("pack-quantized", {**INT4, "symmetric": False}, None),
    "W8A16 packed": ("pack-quantized", {**INT4, "num_bits": 8}, None),
    "W4A16 by rows": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "channel"}, None),
    "W8A16": ("int-quantized", INT8, None),
    "W8A16 with zero points": ("int-quantized", {**INT8, "symmetric": False}, None),
    "W8A8": ("int-quantized", INT8, {**TOKEN, "type": "int"}),
    "W8A8, one scale, asymmetric inputs": ("int-quantized", {**INT8, "strategy": "tensor"},
                                           {**TOKEN, "type": "int", "symmetric": False}),
    "W8A8, stored scales": ("int-quantized", INT8, {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    "fp8": ("float-quantized", {**E4M3, "strategy": "channel"}, {**TOKEN, "type": "float"}),
    "fp8, stored scales": ("float-quantized", {**E4M3, "strategy": "tensor"}, {**E4M3, "strategy": "tensor"}),
    "fp8 in blocks": ("float-quantized", {**E4M3, "strategy": "block", "block_structure": [16, 32]},
                      {**E4M3, "strategy": "group", "group_size": 32, "dynamic": True}),
    "fp8 weights": ("naive-quantized", {**E4M3, "strategy": "tensor"}, None),
}  # fmt: skip


def compressed(weight, scheme, stored):
    """What the library stores of one matrix, and what it takes out again."""
    args = scheme.weights
    scale, zero = calculate_qparams(*extremes(weight, args), args)
    state = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = zero.round().to(torch.int8)
    if scheme.input_activations is not None and not scheme.input_activations.dynamic:
        state["input_scale"] = torch.tensor([0.03 if args.type == "int" else 0.01])
    compressor = BaseCompressor.get_value_from_registry(stored)
    made = compressor.compress(state, scheme)
    return made, compressor.decompress(made, scheme)["weight"].float()


def extremes(weight, args):
    rows, width = weight.shape
    if args.strategy == "tensor":
        return weight.min().view(1), weight.max().view(1)
    if args.strategy == "block":
        tall, wide = args.block_structure
        blocks = weight.view(rows // tall, tall, width // wide, wide)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = weight.view(rows, -1, args.group_size or width)
    return groups.amin(-1), groups.amax(-1)


@pytest.mark.parametrize("kind", list(SCHEMES))
def test_compressed_tensors(kind, ranks, weights):
    stored, args, inputs = SCHEMES[kind]
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**args), format=stored,
        input_activations=None if inputs is None else QuantizationArgs(**inputs),
    )  # fmt: skip
    written = QuantizationConfig(config_groups={"group_0": scheme}, format=stored, ignore=["re:.*lm_head"])
    declared = {**json.loads(written.model_dump_json()), "quantization_status": "compressed"}
    tensors, stand_for = {}, {}
    for name in SHAPES:
        made, stand_for[name] = compressed(weights[name], scheme, stored)
        tensors |= {f"{name}.{parameter}": value for parameter, value in made.items()}
    x, wide = torch.randn(5, HIDDEN), torch.randn(5, WIDTH)
    answers = ranks(lambda: CompressedTensorsConfig.from_config(declared), tensors).answers(x, wide)
    bound = 2e-6 if inputs is None else 0.02 if args["type"] == "int" else 0.06
    for name, got in answers.items():
        want = F.linear(wide if name == "down_proj" else x, stand_for[name])
        assert tiny.off(got, want) < bound, name
