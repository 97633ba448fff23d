"""Configuration objects as model files read them: older names, and types that transformers does not know."""

from dataclasses import dataclass

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MptConfig, PhiConfig, PreTrainedConfig

from bestiary.engine.loader.hf_config import make_hf_config
from bestiary_vllm.hf_config import as_read_by_files
from bestiary_vllm.shims.rope import get_rope


def read(config, text=None):
    return as_read_by_files(config, config if text is None else text)


def bag(**fields):
    return read(make_hf_config({"model_type": "unheard_of", **fields})[0])[0]


def test_fields_of_transformers_4_are_there():
    config, text = read(LlamaConfig(rope_theta=5e5))
    assert text is config and isinstance(config, LlamaConfig)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is None, "files of then take anything else for scaling"
    assert not hasattr(config, "partial_rotary_factor")
    assert read(PhiConfig())[0].partial_rotary_factor == 0.5


def test_scaling_is_what_it_was():
    config, _ = read(LlamaConfig(rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0}))
    assert config.rope_scaling["factor"] == 2.0


def test_layers_with_a_base_of_their_own():
    config, _ = read(Gemma3TextConfig())
    assert (config.rope_theta, config.rope_local_base_freq) == (1_000_000.0, 10_000.0)
    assert config.rope_scaling is None


def test_parameters_of_each_kind_are_also_read_as_one():
    parameters = read(Gemma3TextConfig())[0].rope_parameters
    assert parameters["rope_theta"] == parameters["full_attention"]["rope_theta"] == 1_000_000.0
    assert parameters["sliding_attention"]["rope_theta"] == 10_000.0
    with pytest.raises(KeyError):
        _ = parameters["factor"]
    whole, part = get_rope(16, 8, True, parameters), get_rope(16, 8, True, parameters["full_attention"])
    assert torch.equal(whole.cos_sin_cache, part.cos_sin_cache)


def test_what_files_change_is_a_copy(recwarn):
    own = LlamaConfig()
    config, _ = read(own)
    config.rope_theta, config.rope_scaling = 7.0, {"rope_type": "linear"}
    assert (config.rope_theta, config.rope_scaling) == (7.0, {"rope_type": "linear"})
    assert "linear" not in str(own.rope_parameters) and not hasattr(own, "rope_theta")
    assert list(recwarn) == []


def test_a_text_part_stays_the_part_of_its_whole():
    whole = PreTrainedConfig()
    whole.text_config = LlamaConfig(rope_theta=3e5)
    config, text = read(whole, whole.text_config)
    assert text is config.text_config is not whole.text_config
    assert text.rope_theta == 3e5


def test_an_unknown_type_is_transformers_object_of_its_fields():
    config = bag(hidden_size=8, rope_theta=2e4, rotary_pct=0.5)
    assert isinstance(config, PreTrainedConfig)
    assert (config.model_type, config.hidden_size, config.tie_word_embeddings) == ("unheard_of", 8, False)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}
    config.validate()


def test_scaling_of_an_unknown_type_keeps_its_form_and_gets_the_present_one():
    config = bag(rope_theta=2e4, rope_scaling={"type": "linear", "factor": 2.0})
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0}
    assert config.rope_scaling == {"type": "linear", "factor": 2.0}


def test_nothing_is_made_up_of_rotary_positions():
    assert not hasattr(bag(hidden_size=8), "rope_parameters")
    assert not hasattr(bag(hidden_size=8), "rope_theta")


def test_parts_are_read_either_way():
    config = bag(blocks=[{"attention": {"no_op": True}}])
    assert config.blocks[0].attention.no_op is config.blocks[0]["attention"].get("no_op") is True
    with pytest.raises(AttributeError, match="no field 'ffn'"):
        _ = config.blocks[0].ffn


def test_a_file_may_rename_fields():
    config = bag(n_layer=3)
    config.attribute_map = {"num_hidden_layers": "n_layer"}
    assert config.num_hidden_layers == 3


def test_windows_by_their_pattern():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config, _ = read(Gemma3TextConfig(num_hidden_layers=6, layer_types=kinds, sliding_window=9))
    assert (config.interleaved_sliding_window, config.sliding_window_pattern) == (9, 3)
    odd, _ = read(Gemma3TextConfig(num_hidden_layers=6, layer_types=sorted(kinds), sliding_window=9))
    assert not hasattr(odd, "sliding_window_pattern"), "layers that do not alternate evenly have none"
    assert not hasattr(read(LlamaConfig())[0], "interleaved_sliding_window")


def test_an_activation_has_its_older_name():
    assert read(Gemma2Config())[0].hidden_act == "gelu_pytorch_tanh"


def test_parts_of_transformers_objects_are_read_as_mappings():
    assert read(MptConfig())[0].attn_config["attn_type"] == "multihead_attention"


def test_a_plugins_own_class_is_read_by_its_fields():
    @dataclass(frozen=True)
    class Own:
        hidden_size: int = 8
        rotary_emb_base: float = 3e4
        rope_parameters: dict | None = None

    config, text = read(Own())
    assert text is config and (config.hidden_size, config.rope_theta) == (8, 3e4)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 3e4}
