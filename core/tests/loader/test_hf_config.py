"""`make_hf_config`: transformers' classes from data alone, nothing executed, nothing fetched (rows C01, C03, C04)."""

from __future__ import annotations

import copy
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bestiary.api.errors import ConfigError
from bestiary.engine.loader.config_load import load_config
from bestiary.engine.loader.hf_config import (
    AttributeConfig,
    _LateActivations,
    make_hf_config,
    text_config,
    transformers_config_class,
)
from bestiary.engine.loader.source import resolve_source

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}


def refused(data: dict[str, Any], **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make_hf_config(data, **options)
    assert caught.value.limit
    assert caught.value.field
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        LLAMA,
        {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {**LLAMA, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1},
        {"model_type": "gpt2", "hidden_size": 32},
        {"model_type": "bloom", "hidden_size": 32, "n_head": 4, "n_layer": 1},
        {"model_type": "bloom", "n_embed": 32, "num_attention_heads": 4, "n_layer": 1},
        {
            "model_type": "qwen2",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "use_sliding_window": True,
            "sliding_window": 8,
        },
    ],
)
def test_equals_what_transformers_makes(data: dict[str, Any]) -> None:
    before = copy.deepcopy(data)
    config, notices = make_hf_config(data)

    from transformers import AutoConfig

    fields = copy.deepcopy({name: value for name, value in data.items() if name != "model_type"})
    expected = AutoConfig.for_model(data["model_type"], **fields)
    assert type(config) is type(expected)
    assert config.to_dict() == expected.to_dict()
    assert notices == ()
    assert data == before


def test_class_refuses_a_field() -> None:
    error = refused({**LLAMA, "hidden_size": "64"}, source="/m/config.json")
    assert error.error_code == "BAD_CONFIG"
    assert error.field == "/m/config.json: hidden_size"
    assert error.value == "64"
    assert error.__cause__ is not None
    error = refused({**LLAMA, "rope_parameters": {"rope_type": "yarn"}})
    assert error.field == "config.json: rope_parameters"


def test_other_conventions_names_are_an_error_not_a_default() -> None:
    data = {name: value for name, value in LLAMA.items() if name not in ("num_attention_heads", "num_hidden_layers")}
    error = refused({**data, "n_heads": 4, "n_layers": 2})
    assert error.error_code == "INCOMPATIBLE_PARAMETER"
    assert error.field == "config.json: n_heads"
    assert error.details == ("n_heads = 4: write num_attention_heads", "n_layers = 2: write num_hidden_layers")
    assert "hf_overrides" in (error.fix or "")
    make_hf_config({**LLAMA, "n_heads": 4})


def test_misspelt_fields_are_told() -> None:
    _, notices = make_hf_config({**LLAMA, "intermediate_sise": 128, "max_positions_embeddings": 9, "my_own_note": 1})
    assert notices == (
        "intermediate_sise is not a field that LlamaConfig reads; did you mean intermediate_size?",
        "max_positions_embeddings is not a field that LlamaConfig reads; did you mean max_position_embeddings?",
    )


@pytest.mark.parametrize("name", ["to_dict", "from_pretrained", "get_text_config", "attribute_map", "sub_configs"])
def test_fields_do_not_replace_members_of_the_class(name: str) -> None:
    error = refused({**LLAMA, name: {"hidden_size": "vocab_size"}})
    assert error.field == f"config.json: {name}"


def test_rotary_types_that_only_we_know_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    try:
        config, _ = make_hf_config(
            {**LLAMA, "rope_parameters": {"rope_type": "factors", "freq_factors": [1.0] * 8, "rope_theta": 1e4}}
        )
    finally:
        log.removeHandler(caplog.handler)
    assert config.rope_parameters["freq_factors"] == [1.0] * 8
    assert not caplog.records


def test_plugins_own_class_and_parser_win() -> None:
    class Mine:
        model_type = "llama"

        def __init__(self, hidden_size: int = 1, **rest: Any) -> None:
            if hidden_size > 100:
                raise ValueError("hidden_size is too much")
            self.hidden_size, self.rest = hidden_size, rest

    config, _ = make_hf_config(LLAMA, config_class=Mine)
    assert type(config) is Mine
    assert config.hidden_size == 64
    assert "model_type" not in config.rest
    error = refused({**LLAMA, "hidden_size": 101}, config_class=Mine)
    assert error.field == "config.json: hidden_size"
    assert "Mine" in str(error)
    parsed, _ = make_hf_config(
        LLAMA, config_class=Mine, parser=lambda data: (data.pop("model_type"), data["vocab_size"])
    )
    assert parsed == ("llama", 512)
    assert LLAMA["model_type"] == "llama"
    assert refused(LLAMA, parser=lambda data: data["absent"]).field


def test_unknown_model_type_is_an_attribute_bag() -> None:
    data = {"model_type": "chimera", "hidden_size": 64, "text_config": {"heads": 4, "deep": {"x": [1]}}}
    config, _ = make_hf_config(data, source="/m/config.json")
    assert isinstance(config, AttributeConfig)
    assert config.hidden_size == 64
    assert config.text_config.deep.x == [1]
    assert config.get("absent") is None
    assert config.get("absent", 3) == 3
    assert "hidden_size" in config
    assert config.to_dict() == data
    assert not hasattr(config, "hidden_sise")
    with pytest.raises(AttributeError, match=r"/m/config\.json has no field 'hidden_sise'; did you mean hidden_size"):
        _ = config.hidden_sise
    with pytest.raises(AttributeError, match=r"config\.json: text_config has no field 'head'"):
        _ = config.text_config.head
    other = copy.deepcopy(config)
    other.hidden_size = 7
    assert (config.hidden_size, other.hidden_size) == (64, 7)


def test_no_model_type_is_an_attribute_bag_and_a_wrong_one_an_error() -> None:
    assert isinstance(make_hf_config({"hidden_size": 64})[0], AttributeConfig)
    assert refused({"model_type": 7}).field == "model_type"
    assert transformers_config_class("os.system") is None


def test_text_part() -> None:
    config, _ = make_hf_config(LLAMA)
    assert text_config(config) is config
    bag, _ = make_hf_config({"model_type": "chimera", "text_config": {"vocab_size": 3}})
    assert text_config(bag).vocab_size == 3
    gemma, _ = make_hf_config({"model_type": "gemma3", "text_config": {"hidden_size": 32}, "vision_config": {}})
    assert text_config(gemma).hidden_size == 32


def test_nothing_of_the_directory_runs_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = tmp_path / "sentinel"
    for name in ("evil", "configuration_llama", "__init__"):
        (tmp_path / f"{name}.py").write_text(f"open({str(sentinel)!r}, 'w').close()")
    hostile = {
        **LLAMA,
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
        "_attn_implementation_internal": "attacker/kernel",
        "text_config": {"trust_remote_code": True, "auto_map": {"AutoConfig": "attacker/repo--evil.Evil"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    monkeypatch.setattr(socket, "socket", _refuse_sockets)
    monkeypatch.chdir(tmp_path)
    checked = load_config(resolve_source(str(tmp_path)))
    config, _ = make_hf_config(checked.data)
    assert "auto_map ignored: this project runs no code from model directories" in checked.notices
    assert config.hidden_size == 64
    assert getattr(config, "_attn_implementation_internal", None) is None
    assert not hasattr(config, "auto_map")
    assert not sentinel.exists()
    assert "evil" not in sys.modules


def _refuse_sockets(*arguments: object, **options: object) -> None:
    raise RuntimeError("a socket was opened")


LEAN = """
import sys
from bestiary.engine.loader.hf_config import make_hf_config
config, _ = make_hf_config({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
never = "torch._dynamo torch.distributed.tensor accelerate sympy transformers.activations transformers.modeling_utils"
never += " transformers transformers.models"
heavy = [name for name in never.split() if name in sys.modules]
if heavy:
    sys.exit(f"imported: {heavy}")
"""


REAL_LATER = """
from bestiary.engine.loader.hf_config import make_hf_config
config, _ = make_hf_config({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
import transformers
same = transformers.LlamaConfig, transformers.models.llama.LlamaConfig, type(transformers.AutoConfig.for_model("llama"))
print(transformers.__file__ is not None and all(each is type(config) for each in same))
"""


def test_who_imports_transformers_later_gets_the_real_one_with_the_same_classes() -> None:
    done = subprocess.run([sys.executable, "-c", REAL_LATER], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_the_compilers_imports_are_spared() -> None:
    done = subprocess.run([sys.executable, "-O", "-c", LEAN], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_stand_in_answers_like_the_table_of_activations() -> None:
    late = _LateActivations()

    from transformers.activations import ACT2FN

    assert list(late.keys()) == list(ACT2FN.keys())
    assert len(late) == len(ACT2FN) > 0
    assert "silu" in late
    assert "os.system" not in late
    assert type(late["silu"]) is type(ACT2FN["silu"])
