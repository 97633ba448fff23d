"""An alias at work: a Llama whose configuration and tensors bear other names gives transformers' logits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bestiary import LLM
from bestiary.api import Alias
from bestiary.api.errors import BestiaryError, BrokenPlugin, ConfigError, WeightsMismatch
from bestiary.api.registry import ModelRegistry
from bestiary.serve.cli.main import run
from bestiary.testing.fake_site import Site
from bestiary.testing.logits import prompt_logits

IDS = [5, 17, 3, 88, 42, 9]
FIELDS = {
    "hidden_size": "width", "intermediate_size": "d_ff", "num_hidden_layers": "n_stacked",
    "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "rms_norm_eps": "norm_eps",
    "rope_theta": "rope.base",
}  # fmt: skip
RENAMES = {
    "prefix": {"transformer.blocks.": "model.layers.", "transformer.final_norm.": "model.norm.",
               "wte.": "model.embed_tokens."},
    "substr": {".attn.": ".self_attn.", ".norm_1.": ".input_layernorm.", ".norm_2.": ".post_attention_layernorm."},
    "regex": {r"\.ffn\.w([123])\.": r".mlp.w\1."},
    "suffix": {"mlp.w1.weight": "mlp.gate_proj.weight", "mlp.w2.weight": "mlp.down_proj.weight",
               "mlp.w3.weight": "mlp.up_proj.weight", ".alibi": None},
}  # fmt: skip
ALIAS: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "model_type": "llama",
    "config": FIELDS,
    "constants": {"hidden_act": "silu"},
    "defaults": {"tie_word_embeddings": False, "norm_bias": None},
    "weights": RENAMES,
}


def their_name(name: str) -> str:
    """The checkpoint's name for one of Llama's tensors, spelt out independently of the tables above."""
    parts = {
        "model.layers": "transformer.blocks", "model.norm": "transformer.final_norm", "model.embed_tokens": "wte",
        "self_attn": "attn", "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2",
        "mlp.gate_proj": "ffn.w1", "mlp.down_proj": "ffn.w2", "mlp.up_proj": "ffn.w3",
    }  # fmt: skip
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny Llama in its own names, and its logits."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=128, initializer_range=0.2, rms_norm_eps=1e-3,
        rope_theta=500.0, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.inference_mode():
        for name, param in model.named_parameters():
            if "norm" in name:
                param.add_(torch.randn_like(param) * 0.3)
        logits = model(torch.tensor([IDS])).logits[0]
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return folder, logits


@pytest.fixture
def garnet(llama: tuple[Path, torch.Tensor], tmp_path: Path) -> Path:
    """The same model as its fictitious authors publish it."""
    folder = tmp_path / "garnet-model"
    folder.mkdir()
    weights = {their_name(name): tensor for name, tensor in load_file(llama[0] / "model.safetensors").items()}
    assert not any(name.startswith("model.") for name in weights)
    weights["transformer.alibi"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["GarnetForCausalLM"], "model_type": "garnet", "hidden_act": "swiglu", "vocab_size": 101,
        "max_position_embeddings": 128, "width": 48, "d_ff": 80, "n_stacked": 3, "n_heads": 4, "n_kv_heads": 2,
        "norm_eps": 1e-3, "rope": {"base": 500.0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs the alias's package, with changes to the alias; nothing of it stays."""
    site = Site(tmp_path / "site")
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(site.root))

    def install(gguf: str = "", **changes: Any) -> None:
        source = f"from bestiary.api import Alias, GgufArchitecture\nGARNET = Alias(**{ALIAS | changes!r})\n{gguf}\n"
        entries = {"garnet": "garnet_names:GGUF"} if gguf else None
        site.add(
            "garnet-names", "1.2", aliases={"GarnetForCausalLM": "garnet_names:GARNET"}, gguf=entries, source=source
        )
        ModelRegistry.refresh()

    yield install
    sys.modules.pop("garnet_names", None)
    monkeypatch.undo()
    ModelRegistry.refresh()


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False, **options)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def test_the_logits_are_transformers(
    garnet: Path, installed: Callable[..., None], llama: tuple[Path, torch.Tensor]
) -> None:
    installed()
    llm = load(garnet)
    torch.testing.assert_close(prompt_logits(llm, IDS), llama[1], atol=1e-4, rtol=0)
    config = llm.vllm_config.model_config
    assert (config.architecture, config.hf_config.model_type) == ("GarnetForCausalLM", "llama")
    assert type(config.hf_config) is transformers.LlamaConfig


def test_a_file_that_states_a_field_under_the_class_s_own_name_will_do(
    garnet: Path, installed: Callable[..., None], llama: tuple[Path, torch.Tensor]
) -> None:
    installed()
    change(garnet, width=None, hidden_size=48, n_heads=4, num_attention_heads=4)
    torch.testing.assert_close(prompt_logits(load(garnet), IDS), llama[1], atol=1e-4, rtol=0)


def test_inspect_and_models_say_what_it_is(
    garnet: Path, installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed()
    assert run(["inspect", str(garnet), "--json", "--dtype", "float32"]) == 0
    plugin = json.loads(capsys.readouterr().out)["plugin"]
    assert plugin["architecture"] == "GarnetForCausalLM" and plugin["package"] == "garnet-names"
    assert (plugin["alias_of"], plugin["class_package"]) == ("LlamaForCausalLM", "bestiary-llama")
    assert run(["inspect", str(garnet), "--dtype", "float32"]) == 0
    assert "LlamaForCausalLM, bestiary-llama" in capsys.readouterr().out
    assert run(["models", "--installed"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("GarnetForCausalLM")]
    assert "alias of LlamaForCausalLM (bestiary-llama): " in line


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n_heads": None}, ["n_heads is missing (for num_attention_heads); it has n_kv_heads"]),
        ({"rope": {"theta": 3}}, ["rope.base is missing (for rope_theta)"]),
        ({"width": 48, "hidden_size": 64}, ["width = 48 and hidden_size = 64: one of the two"]),
        ({"n_stacked": -3}, ["num_hidden_layers is n_stacked of config.json, says GarnetForCausalLM (from dist"]),
        ({"n_stacked": "high", "width": 0}, ["hidden_size is width", "num_hidden_layers is n_stacked"]),
    ],
)
def test_a_configuration_that_is_not_what_the_alias_says(
    garnet: Path, installed: Callable[..., None], fields: dict[str, Any], says: list[str]
) -> None:
    installed()
    change(garnet, **fields)
    with pytest.raises(ConfigError) as raised:
        load(garnet)
    for each in says:
        assert any(line.startswith(each) for line in raised.value.details), raised.value


def test_a_field_that_nobody_reads_is_the_alias_s_mistake(garnet: Path, installed: Callable[..., None]) -> None:
    fields = {**FIELDS, "num_hiden_layers": "n_stacked"}
    del fields["num_hidden_layers"]
    installed(config=fields)
    with pytest.raises(BrokenPlugin) as raised:
        load(garnet)
    assert raised.value.details == ("num_hiden_layers: LlamaConfig reads num_hidden_layers",)
    assert "GarnetForCausalLM (from dist garnet-names 1.2)" in raised.value.message


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"suffix": {}}, "transformer.blocks.0.ffn.w1.weight (here model.layers.0.mlp.w1.weight) [80, 48]: no "),
        ({"suffix": {**RENAMES["suffix"], "lm_head.weight": None}}, "lm_head.weight [101, 48]: not filled"),
        (
            {"suffix": {**RENAMES["suffix"], "norm_1.weight": "post_attention_layernorm.weight"}, "substr": {
                ".attn.": ".self_attn.", ".norm_2.": ".post_attention_layernorm."}},
            "transformer.blocks.0.norm_1.weight and transformer.blocks.0.norm_2.weight: both are renamed to ",
        ),
    ],
)  # fmt: skip
def test_loading_stays_complete_and_names_the_checkpoint_s_tensors(
    garnet: Path, installed: Callable[..., None], weights: dict[str, Any], says: str
) -> None:
    installed(weights=RENAMES | weights)
    with pytest.raises(WeightsMismatch) as raised:
        load(garnet)
    assert any(line.startswith(says) for line in raised.value.details), raised.value


def test_a_wrong_shape_and_an_extra_tensor_are_told_under_the_checkpoint_s_names(
    garnet: Path, installed: Callable[..., None]
) -> None:
    installed()
    path = garnet / "model.safetensors"
    weights = load_file(path)
    weights["transformer.blocks.1.attn.o_proj.weight"] = torch.ones(48, 47)
    weights["transformer.blocks.1.attn.gate"] = torch.ones(3)
    save_file(weights, path)
    with pytest.raises(WeightsMismatch) as raised:
        load(garnet)
    assert set(raised.value.details) == {
        "transformer.blocks.1.attn.o_proj.weight (here model.layers.1.self_attn.o_proj.weight): "
        "expected shape [48, 48], the checkpoint has [48, 47]",
        "transformer.blocks.1.attn.gate (here model.layers.1.self_attn.gate) [3]: no parameter of this name",
    } | {line for line in raised.value.details if line.startswith("parameters without")}


def test_a_class_with_its_own_load_weights_sees_the_new_names(
    garnet: Path, installed: Callable[..., None], llama: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bestiary.nn import AutoWeightsLoader
    from llama_plugin.llama import LlamaForCausalLM

    seen: list[str] = []

    def load_weights(self: Any, weights: Any) -> set[str]:
        return AutoWeightsLoader(self).load_weights((seen.append(name) or name, tensor) for name, tensor in weights)

    monkeypatch.setattr(LlamaForCausalLM, "load_weights", load_weights, raising=False)
    installed()
    torch.testing.assert_close(prompt_logits(load(garnet), IDS), llama[1], atol=1e-4, rtol=0)
    assert sorted(seen) == sorted(load_file(llama[0] / "model.safetensors"))


def test_an_alias_by_hand_and_a_missing_field_with_a_default(garnet: Path, llama: tuple[Path, torch.Tensor]) -> None:
    change(garnet, architectures=["HandmadeForCausalLM"], n_kv_heads=None, norm_eps=None)
    ModelRegistry.register_alias(
        "HandmadeForCausalLM", Alias(**ALIAS | {"defaults": {"num_key_value_heads": 2, "rms_norm_eps": 1e-3}})
    )
    torch.testing.assert_close(prompt_logits(load(garnet), IDS), llama[1], atol=1e-4, rtol=0)


def test_overrides_speak_the_checkpoint_s_names(garnet: Path, installed: Callable[..., None]) -> None:
    installed()
    with pytest.raises(WeightsMismatch):
        load(garnet, hf_overrides={"d_ff": 81})


def test_a_gguf_file_speaks_the_class_s_names_already(
    installed: Callable[..., None], llama: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    import gguf

    stored = load_file(llama[0] / "model.safetensors")
    path = tmp_path / "garnet.gguf"
    writer = gguf.GGUFWriter(path, "garnet")
    for key, value in {
        "embedding_length": 48, "feed_forward_length": 80, "block_count": 3, "attention.head_count": 4,
        "attention.head_count_kv": 2, "context_length": 128, "vocab_size": 101, "rope.dimension_count": 12,
    }.items():  # fmt: skip
        writer.add_uint32(f"garnet.{key}", value)
    writer.add_float32("garnet.attention.layer_norm_rms_epsilon", 1e-3)
    writer.add_float32("garnet.rope.freq_base", 500.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, tensor in stored.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # rows as llama.cpp stores them
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    installed(
        gguf="GGUF = GgufArchitecture(architecture='GarnetForCausalLM', model_type='garnet', "
        "rope_interleaved={'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'})"
    )
    llm = load(path)
    torch.testing.assert_close(prompt_logits(llm, IDS), llama[1], atol=1e-4, rtol=0)
    assert llm.vllm_config.model_config.architecture == "GarnetForCausalLM"


def test_errors_of_an_alias_are_of_the_one_tree(garnet: Path, installed: Callable[..., None]) -> None:
    installed(architecture="NobodyForCausalLM")
    with pytest.raises(BestiaryError) as raised:
        load(garnet)
    assert raised.value.error_code == "UNKNOWN_ARCHITECTURE" and "garnet-names 1.2" in raised.value.message
