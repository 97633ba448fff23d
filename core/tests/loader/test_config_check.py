"""`check_config` and `load_config`: rows C01, C03, C04, C07, C09, C12, and errors about architectures and overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.errors import ConfigError, UnknownArchitecture, UsageError
from bestiary.engine.loader.config_check import NAMES_CODE, architectures, check_config
from bestiary.engine.loader.config_load import apply_overrides, load_config
from bestiary.engine.loader.source import resolve_source

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
METHODS = ("fp8", "gptq", "awq")


def refused(changes: dict[str, Any], *, code: str = "BAD_CONFIG") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_config({**LLAMA, **changes}, quantization_methods=METHODS)
    assert type(caught.value) is ConfigError
    assert caught.value.error_code == code
    return caught.value


def test_a_good_configuration_passes_unchanged() -> None:
    checked = check_config(LLAMA)
    assert checked.data == LLAMA
    assert checked.data is not LLAMA
    assert checked.notices == ()


@pytest.mark.parametrize("value", [0, -1, 2**40, float("inf"), "64", True, None, 64.0, [64]])
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "n_embd", "n_layer"])
def test_sizes(field: str, value: object) -> None:
    error = refused({field: value})
    assert error.field == field
    assert "an integer from 1 to" in str(error.limit)
    assert field in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10_001),
        ("vocab_size", 10**12),
        ("intermediate_size", 0),
        ("intermediate_size", "128"),
        ("head_dim", -64),
        ("max_position_embeddings", 0),
        ("num_local_experts", -1),
        ("n_head", True),
        ("n_inner", 2**60),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", -1e-5),
        ("layer_norm_epsilon", "1e-5"),
        ("rope_theta", 0),
        ("rope_theta", float("nan")),
        ("partial_rotary_factor", 1.5),
        ("tie_word_embeddings", "false"),
        ("use_cache", 1),
        ("attention_bias", None),
        ("sliding_window", -1),
        ("dtype", "bfloat17"),
        ("torch_dtype", 16),
        ("final_logit_softcapping", -1.0),
    ],
)
def test_one_bad_field(field: str, value: object) -> None:
    error = refused({field: value})
    assert error.field == field
    assert error.limit
    assert field in str(error)


def test_every_bad_field_is_in_one_error() -> None:
    error = refused({"hidden_size": 0, "vocab_size": None, "use_cache": "no"})
    assert len(error.details) == 3
    assert all(name in str(error) for name in ("hidden_size", "vocab_size", "use_cache"))


def test_nulls_that_mean_absent() -> None:
    names = ("num_key_value_heads", "head_dim", "n_inner", "sliding_window", "rope_scaling", "dtype", "rope_parameters")
    check_config({**LLAMA, **dict.fromkeys(names)})


def test_heads_divide_hidden_unless_head_dim_is_given() -> None:
    error = refused({"num_attention_heads": 6, "num_key_value_heads": 2})
    assert error.field == "num_attention_heads"
    assert "hidden_size = 64" in str(error.limit)
    check_config({**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16})
    refused({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": None})


def test_kv_heads_divide_heads() -> None:
    error = refused({"num_key_value_heads": 3})
    assert error.field == "num_key_value_heads"
    assert "num_attention_heads = 4" in str(error.limit)
    assert refused({"num_key_value_heads": 8}).field == "num_key_value_heads"


def test_nested_configurations_are_checked_too() -> None:
    assert refused({"text_config": {"hidden_size": -1}}).field == "text_config.hidden_size"
    assert (
        refused({"text_config": {"hidden_size": 64, "num_attention_heads": 7}}).field
        == "text_config.num_attention_heads"
    )
    assert (
        refused({"vision_config": {"inner_config": {"vocab_size": 0}}}).field == "vision_config.inner_config.vocab_size"
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"rope_type": "spiral"}, "rope_type"),
        ({"rope_type": 7}, "rope_type"),
        ({"rope_type": ["linear"]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"type": "linear", "factor": 0}, "factor"),
        ({"type": "linear", "factor": None}, "factor"),
        ({"type": "linear", "factor": "2"}, "factor"),
        ({"type": "dynamic", "factor": float("nan")}, "factor"),
        ({"type": "dynamic", "factor": True}, "factor"),
        ({**YARN, "factor": float("inf")}, "factor"),
        ({**YARN, "beta_fast": -1}, "beta_fast"),
        ({**YARN, "attention_factor": 0}, "attention_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}, "low_freq_factor"),
        ({"type": "su", "short_factor": [1.0], "long_factor": []}, "long_factor"),
        ({"type": "longrope", "short_factor": [1.0, -1.0], "long_factor": [1.0]}, "short_factor"),
        ({"type": "longrope", "long_factor": [1.0]}, "short_factor"),
        ({"rope_type": "factors", "freq_factors": [1.0, 0.0]}, "freq_factors"),
        ({"rope_type": "default", "rope_theta": -1}, "rope_theta"),
        (
            {"full_attention": YARN, "sliding_attention": {"rope_type": "linear", "factor": 0}},
            "sliding_attention.factor",
        ),
    ],
)
def test_rotary_scaling_that_cannot_be(name: str, value: object, where: str) -> None:
    error = refused({name: value})
    assert error.field == f"{name}.{where}"
    assert error.limit


@pytest.mark.parametrize("value", ["linear", 2.0, [1.0], True])
def test_rotary_scaling_is_an_object(value: object) -> None:
    assert refused({"rope_scaling": value}).field == "rope_scaling"


@pytest.mark.parametrize(
    "value",
    [
        {},
        YARN,
        LLAMA3,
        {"type": "linear", "factor": 2},
        {"type": "dynamic", "factor": 2.0},
        {"type": "mrope", "mrope_section": [16, 24, 24]},
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [1.0, 30]},
        {"rope_type": "factors", "freq_factors": [1.0, 2.0]},
        {**YARN, "beta_fast": 32, "beta_slow": None, "mscale": 1.0, "truncate": False},
    ],
)
def test_rotary_scaling_in_use(value: dict[str, Any]) -> None:
    check_config({**LLAMA, "rope_scaling": value})
    check_config({**LLAMA, "rope_parameters": {"full_attention": value, "sliding_attention": None}})


def test_plugins_add_rotary_types() -> None:
    check_config({**LLAMA, "rope_scaling": {"type": "spiral"}}, rope_types=["spiral"])


@pytest.mark.parametrize(
    ("value", "code", "field"),
    [
        ({"quant_method": "fp9"}, "UNKNOWN_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": "FP8"}, "UNKNOWN_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": "x" * 500}, "UNKNOWN_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": "evil.module.Method"}, "BAD_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": "evil:Method"}, "BAD_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": "../evil"}, "BAD_QUANTIZATION", "quantization_config.quant_method"),
        ({"quant_method": 8}, "BAD_QUANTIZATION", "quantization_config.quant_method"),
        ({"bits": 4}, "BAD_QUANTIZATION", "quantization_config.quant_method"),
        ([], "BAD_QUANTIZATION", "quantization_config"),
        ("fp8", "BAD_QUANTIZATION", "quantization_config"),
    ],
)
def test_quantization_names_a_registered_method(value: object, code: str, field: str) -> None:
    error = refused({"quantization_config": value}, code=code)
    assert error.field == field
    if field.endswith("quant_method"):
        assert "awq, fp8, gptq" in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [("bits", 0), ("bits", "4"), ("bits", True), ("group_size", 0), ("group_size", -2)]
)
def test_quantization_numbers(field: str, value: object) -> None:
    assert (
        refused({"quantization_config": {"quant_method": "gptq", field: value}}).field == f"quantization_config.{field}"
    )


def test_quantization_that_is_registered() -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    checked = check_config({**LLAMA, "quantization_config": quantization}, quantization_methods=METHODS)
    assert checked.data["quantization_config"] == quantization
    with pytest.raises(ConfigError, match="registered methods: none"):
        check_config({**LLAMA, "quantization_config": quantization})


NOTICE = "ignored: this project runs no code from model directories"


def test_fields_that_name_code_are_dropped_at_every_level() -> None:
    data = {
        **LLAMA,
        "auto_map": {"AutoModel": "evil.Evil"},
        "_attn_implementation_internal": "attacker/kernel",
        "custom_pipelines": {"x": {"impl": "evil.P"}},
        "text_config": {
            "trust_remote_code": True,
            "auto_map": {"a": "b"},
            "hidden_size": 64,
            "layers": [{"auto_map": {"x": "y"}}],
        },
        "trust_remote_code": False,
    }
    checked = check_config(data)
    assert set(checked.notices) == {
        f"auto_map {NOTICE}",
        f"_attn_implementation_internal {NOTICE}",
        f"custom_pipelines {NOTICE}",
        f"text_config.trust_remote_code {NOTICE}",
        f"text_config.auto_map {NOTICE}",
        f"text_config.layers[0].auto_map {NOTICE}",
    }
    assert not any(name in repr(checked.data) for name in NAMES_CODE)
    assert checked.data["text_config"]["hidden_size"] == 64
    assert "auto_map" in data
    assert "auto_map" in data["text_config"]


def test_dunder_fields_are_refused() -> None:
    assert refused({"__class__": "x"}).field == "__class__"
    assert refused({"text_config": {"__init__": 1}}).field == "text_config.__init__"


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        (None, "MISSING_ARCHITECTURE", "names no architecture"),
        ([], "MISSING_ARCHITECTURE", "empty"),
        ("LlamaForCausalLM", "BAD_ARCHITECTURE", "no list"),
        ({"a": 1}, "BAD_ARCHITECTURE", "no list"),
        ([7], "BAD_ARCHITECTURE", "not a class name"),
        (["os.system"], "BAD_ARCHITECTURE", "not a class name"),
        ([""], "BAD_ARCHITECTURE", "not a class name"),
        (["A"] * 17, "BAD_ARCHITECTURE", "not a class name"),
    ],
)
def test_architectures_each_with_its_own_message(value: object, code: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        architectures({"model_type": "llama", "architectures": value})
    assert caught.value.error_code == code
    assert caught.value.field == "architectures"
    assert "architectures" in (caught.value.fix or "")


def test_unknown_architecture_and_its_neighbours() -> None:
    known = ["LlamaForCausalLM", "MistralForCausalLM", "BloomModel"]
    assert architectures(LLAMA, known=known) == ("LlamaForCausalLM",)
    with pytest.raises(UnknownArchitecture, match="did you mean LlamaForCausalLM") as caught:
        architectures({"architectures": ["LLaMAForCausalLM"]}, known=known)
    assert caught.value.error_code == "UNKNOWN_ARCHITECTURE"
    assert caught.value.value == "LLaMAForCausalLM"


def test_overrides_nest_and_leave_the_original() -> None:
    data = {"a": 1, "rope": {"x": 1, "y": 2}}
    assert apply_overrides(data, {"a": None, "rope": {"y": 3}, "new": {"z": [1]}}) == {
        "a": None, "rope": {"x": 1, "y": 3}, "new": {"z": [1]},
    }  # fmt: skip
    assert apply_overrides(data, lambda d: {**d, "a": 5})["a"] == 5
    assert data == {"a": 1, "rope": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"trust_remote_code": True}, "hf_overrides.trust_remote_code"),
        ({"text_config": {"auto_map": {}}}, "hf_overrides.text_config"),
        ({"text_config": {}, "x": object()}, "hf_overrides.x"),
        ({7: 1}, "hf_overrides"),
        ("hidden_size=1", "hf_overrides"),
        (lambda data: None, "hf_overrides"),
    ],
)
def test_overrides_that_are_refused(overrides: Any, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_overrides({"text_config": {"a": 1}}, overrides)
    assert (caught.value.field or "").startswith(field)
    assert caught.value.limit


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    source = resolve_source(str(tmp_path))
    assert load_config(source, hf_overrides={"vocab_size": 9}).data == {"hidden_size": 64, "vocab_size": 9}
    with pytest.raises(ConfigError) as caught:
        load_config(source, hf_overrides={"hidden_size": -3})
    assert caught.value.field == "hidden_size"


def test_no_config_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json") as caught:
        load_config(resolve_source(str(tmp_path)))
    assert caught.value.error_code == "CONFIG_NOT_FOUND"
    assert "hf_config_path" in (caught.value.fix or "")


def test_gguf_metadata_serves_where_no_config_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    asked: list[Path] = []

    def read_metadata(path: Path) -> dict[str, Any]:
        asked.append(path)
        return dict(LLAMA)

    assert load_config(resolve_source(str(file)), read_metadata=read_metadata).data == LLAMA
    assert asked == [file]
    (tmp_path / "config.json").write_text('{"vocab_size": 9}')
    assert load_config(resolve_source(str(file)), read_metadata=read_metadata).data == {"vocab_size": 9}
    assert asked == [file]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "rope_type", "factor", "a"]), SCALARS)
)
FIELDS = st.sampled_from(
    [*LLAMA, "head_dim", "rope_parameters", "text_config", "quantization_config", "sliding_window", "x"]
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(FIELDS, ANYTHING, max_size=4))
def test_any_change_passes_or_is_one_error(changes: dict[str, Any]) -> None:
    error = None
    try:
        checked = check_config({**LLAMA, **changes}, quantization_methods=METHODS)
    except ConfigError as caught:
        error = caught
    if error is None:
        assert checked.data["hidden_size"] % checked.data["num_attention_heads"] == 0 or checked.data["head_dim"]
        assert not any(name in NAMES_CODE for name in checked.data)
    else:
        assert error.field
        assert error.limit


def test_numbers_that_json_lacks_are_read_as_transformers_writes_them():
    given = {"time_step_limit": [0.0, {"__float__": "Infinity"}], "low": {"__float__": "-Infinity"}}
    assert check_config({**LLAMA, **given}).data["time_step_limit"] == [0.0, float("inf")]
    assert check_config({**LLAMA, **given}).data["low"] == float("-inf")
    assert refused({"low": {"__float__": "__import__('os')"}}).field == "low.__float__"
