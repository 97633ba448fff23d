"""`quantization_config` of every format: what is refused, and which layers are meant."""

import pytest
import torch

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear import ColumnParallelLinear
from bestiary.nn.moe.gate import GateLinear
from bestiary.nn.quant.awq import AwqConfig
from bestiary.nn.quant.bitsandbytes import BitsAndBytesConfig
from bestiary.nn.quant.codebook import CODEBOOKS
from bestiary.nn.quant.compressed_tensors import CompressedTensorsConfig
from bestiary.nn.quant.fp8 import Fp8Config
from bestiary.nn.quant.gptq import GptqConfig
from bestiary.nn.scope import build_scope

GPTQ = {"bits": 4, "group_size": 128}
AWQ = {"bits": 4, "group_size": 128}
FP8 = {"quant_method": "fp8"}
BNB = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


def group(weights=(), inputs=None, **more):
    return {"targets": ["Linear"], "weights": {**WEIGHTS, **dict(weights)}, "input_activations": inputs, **more}


def tensors(groups=None, **more):
    return {"format": "pack-quantized", "config_groups": groups or {"group_0": group()}, **more}


EIGHT = {"num_bits": 8, "strategy": "channel", "group_size": None}
TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
REFUSED = [
    (GptqConfig, GPTQ | {"bits": 3}, "bits"),
    (GptqConfig, GPTQ | {"bits": "4"}, "bits"),
    (GptqConfig, GPTQ | {"group_size": 0}, "group_size"),
    (GptqConfig, {"bits": 4}, "group_size"),
    (GptqConfig, GPTQ | {"desc_act": "yes"}, "desc_act"),
    (GptqConfig, GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format"),
    (GptqConfig, GPTQ | {"dynamic": []}, "dynamic"),
    (GptqConfig, GPTQ | {"dynamic": {"+:.*up": {"bits": 2}}}, "dynamic.+:.*up.bits"),
    (GptqConfig, GPTQ | {"adapter": {"path": "x"}}, "adapter"),
    (GptqConfig, GPTQ | {"modules_in_block_to_quantize": [[1]]}, "modules_in_block_to_quantize.0"),
    (AwqConfig, AWQ | {"bits": 8}, "bits"),
    (AwqConfig, AWQ | {"zero_point": False}, "zero_point"),
    (AwqConfig, AWQ | {"version": "gemv"}, "version"),
    (AwqConfig, AWQ | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
    (Fp8Config, FP8 | {"fmt": "e5m2"}, "fmt"),
    (Fp8Config, FP8 | {"activation_scheme": "sometimes"}, "activation_scheme"),
    (Fp8Config, FP8 | {"activation_scheme": "static", "weight_block_size": [128, 128]}, "activation_scheme"),
    (Fp8Config, FP8 | {"weight_block_size": [128]}, "weight_block_size"),
    (Fp8Config, FP8 | {"weight_block_size": [128, 0]}, "weight_block_size"),
    (Fp8Config, FP8 | {"scale_fmt": "ue8m0"}, "scale_fmt"),
    (BitsAndBytesConfig, {}, "load_in_4bit"),
    (BitsAndBytesConfig, {"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit"),
    (BitsAndBytesConfig, BNB | {"bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type"),
    (BitsAndBytesConfig, BNB | {"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage"),
    (CompressedTensorsConfig, tensors(format="nvfp4-pack-quantized"), "format"),
    (CompressedTensorsConfig, tensors(config_groups=None), "config_groups"),
    (CompressedTensorsConfig, tensors(config_groups={}), "config_groups"),
    (CompressedTensorsConfig, tensors(quantization_status="initialized"), "quantization_status"),
    (CompressedTensorsConfig, tensors(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format"),
    (CompressedTensorsConfig, tensors(transform_config={"config_groups": {"u": {}}}), "transform_config"),
    (CompressedTensorsConfig, tensors({"g": group({"num_bits": 2})}), "config_groups.g.weights.num_bits"),
    (CompressedTensorsConfig, tensors({"g": group({"type": "float"})}), "config_groups.g.weights.num_bits"),
    (CompressedTensorsConfig, tensors({"g": group({"strategy": "row"})}), "config_groups.g.weights.strategy"),
    (CompressedTensorsConfig, tensors({"g": group(inputs=TOKEN)}), "config_groups.g.weights.strategy"),
    (CompressedTensorsConfig, tensors({"g": group({"dynamic": True})}), "config_groups.g.weights.dynamic"),
    (CompressedTensorsConfig, tensors({"g": group(EIGHT, TOKEN | {"dynamic": False})}),
     "config_groups.g.input_activations.strategy"),
    (CompressedTensorsConfig, tensors({"g": group(output_activations=TOKEN)}), "config_groups.g.output_activations"),
    (CompressedTensorsConfig, tensors({"g": {"targets": ["Linear"]}}), "config_groups.g.weights"),
    (CompressedTensorsConfig, tensors(ignore=["re:(a"]), "ignore"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "field"), REFUSED, ids=[f"{k.name} {f}" for k, _, f in REFUSED])
def test_what_changes_the_numbers_is_refused(kind, config, field):
    with pytest.raises(ConfigError) as caught:
        kind.from_config(config)
    assert caught.value.field == f"quantization_config.{field}"
    assert caught.value.limit is not None


def test_unknown_fields_are_told(caplog):
    GptqConfig.from_config(GPTQ | {"damp_percent": 0.1, "temperature_of_the_room": 21})
    assert "temperature_of_the_room" in caplog.text and "damp" not in caplog.text


@pytest.fixture
def layers(scope):
    gate, head = GateLinear(64, 4, bias=False), ParallelLMHead(32, 64)
    return {
        "model.embed_tokens": VocabParallelEmbedding(32, 64),
        "model.layers.0.mlp.up_proj": ColumnParallelLinear(64, 128),
        "model.layers.1.mlp.up_proj": ColumnParallelLinear(64, 128),
        "model.layers.0.mlp.gate": gate,
        "lm_head": head,
    }


@pytest.fixture
def scope(vllm_config):
    with build_scope(vllm_config):
        yield


def quantized(config, layers):
    """Which of the layers have a method, what is stored being unknown."""
    return {name.removeprefix("model.") for name, layer in layers.items() if config.get_quant_method(layer, name)}


BOTH = {"layers.0.mlp.up_proj", "layers.1.mlp.up_proj"}
FIRST = {"layers.0.mlp.up_proj"}
LISTS = [
    (GptqConfig, GPTQ, BOTH),
    (GptqConfig, GPTQ | {"lm_head": True}, BOTH | {"lm_head"}),
    (GptqConfig, GPTQ | {"dynamic": {r"-:model\.layers\.1\.": {}}}, FIRST),
    (GptqConfig, GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]]}, set()),
    (AwqConfig, AWQ | {"modules_to_not_convert": ["layers.1"]}, FIRST),
    (Fp8Config, FP8 | {"ignored_layers": ["model.layers.1.mlp.up_proj"]}, FIRST),
    (Fp8Config, FP8 | {"modules_to_not_convert": ["up_proj"]}, set()),
    (BitsAndBytesConfig, BNB | {"llm_int8_skip_modules": ["lm_head"]}, BOTH),
    (CompressedTensorsConfig, tensors(ignore=["lm_head", r"re:.*layers\.1.*"]), FIRST),
    (CompressedTensorsConfig, tensors(), BOTH | {"lm_head"}),
    (CompressedTensorsConfig, tensors({"g": group() | {"targets": ["re:.*layers.0"]}}), FIRST),
]


@pytest.mark.parametrize(("kind", "config", "meant"), LISTS)
def test_lists_decide_where_nothing_is_known_of_the_files(kind, config, meant, layers):
    assert quantized(kind.from_config(config), layers) == meant


def test_what_is_stored_decides(layers):
    config = AwqConfig.from_config(AWQ | {"modules_to_not_convert": ["layers.0"]})
    config.stored = {"model.layers.0.mlp.up_proj.qweight", "model.layers.1.mlp.up_proj.weight", "lm_head.qweight"}
    assert quantized(config, layers) == FIRST | {"lm_head"}


def test_layers_of_a_group_of_their_own(layers):
    groups = {"a": group({"num_bits": 8}) | {"targets": ["re:.*layers.1"]}, "b": group()}
    config = CompressedTensorsConfig.from_config(tensors(groups))
    bits = [
        config.get_quant_method(layers[f"model.layers.{i}.mlp.up_proj"], f"model.layers.{i}.x").bits for i in (0, 1)
    ]
    assert bits == [4, 8]
    gptq = GptqConfig.from_config(GPTQ | {"dynamic": {r"+:.*layers\.1\.": {"bits": 8, "group_size": 32}}})
    methods = [gptq.get_quant_method(layers["lm_head"], "x"), gptq.method_of_quantized("model.layers.1.mlp.up_proj")]
    assert (methods[0], methods[1].bits, methods[1].group_size) == (None, 8, 32)


def test_scales_of_a_cache_are_left_out_and_that_is_told_once(caplog):
    config = Fp8Config.from_config(FP8)
    stream = [("a.k_scale", torch.ones(1)), ("norm.weight", torch.ones(4)), ("a.v_scale", torch.ones(1))]
    assert [name for name, _ in config.checkpoint_weights(stream)] == ["norm.weight"]
    assert caplog.text.count("left out") == 1


def state(text, **changed):
    """A layer of 2 by 64 weights in NF4, as a checkpoint's tensors."""
    parts = {
        "weight": torch.zeros(64, 1, dtype=torch.uint8), "weight.absmax": torch.ones(2),
        "weight.quant_map": torch.tensor(CODEBOOKS["nf4"]),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text.encode()), dtype=torch.uint8),
    }  # fmt: skip
    return {f"a.{name}": tensor for name, tensor in (parts | changed).items() if tensor is not None}


GOOD = '{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 64]}'
SPOILED = {
    "no JSON": state("{"),
    "another kind": state(GOOD.replace('"nf4"', '"fp4"')),
    "blocks of 7": state(GOOD.replace("64, \"dtype", "7, \"dtype")),
    "shape": state(GOOD.replace("[2, 64]", "[2, 64, 1]")),
    "another shape": state(GOOD.replace("[2, 64]", "[4, 64]")),
    "scales": state(GOOD, **{"weight.absmax": torch.ones(3)}),
    "numbers": state(GOOD, **{"weight.quant_map": torch.zeros(16)}),
    "a part is missing": state(GOOD, **{"weight.absmax": None, "weight.other": torch.ones(1)}),
    "no offset": state(GOOD[:-1] + ', "nested_blocksize": 256}', **{
        "weight.nested_absmax": torch.ones(1), "weight.nested_quant_map": torch.ones(256)}),
    "not a list": state("[]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SPOILED))
def test_a_spoiled_state_of_bitsandbytes(kind):
    config = BitsAndBytesConfig.from_config(BNB)
    config.stored = {"a.weight.absmax"}
    with pytest.raises(WeightsMismatch):
        list(config.checkpoint_weights(SPOILED[kind].items()))


def test_blocks_that_straddle_rows():
    """The published definition: block b of the flattened weight has scale b."""
    rows, width, block = 6, 96, 64
    codes, scales = torch.randint(0, 16, (rows * width,)), torch.rand(rows * width // block)
    book = torch.tensor(CODEBOOKS["nf4"])
    want = (book[codes] * scales.repeat_interleave(block)).view(rows, width)
    held = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8).unsqueeze(1)
    text = f'{{"quant_type": "nf4", "blocksize": {block}, "shape": [{rows}, {width}]}}'
    config = BitsAndBytesConfig.from_config(BNB)
    config.stored = {"a.weight.absmax"}
    made = dict(config.checkpoint_weights(state(text, weight=held, **{"weight.absmax": scales}).items()))
    low_first = torch.stack((made["a.weight"] & 15, made["a.weight"] >> 4), -1).view(rows, width)
    assert torch.equal(book[low_first.int()] * made["a.weight_scale"].repeat_interleave(32, 1), want)
