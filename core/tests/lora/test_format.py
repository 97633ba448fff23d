"""An adapter's directory is data from strangers: what does not fit is refused by name, and nothing is executed."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestiary import LoRARequest
from bestiary.api.errors import BadAdapter, RequestError
from bestiary.engine.loader.lora_patterns import compiled, problems, value_of

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def refused(llm, path, *said):
    """The error for an adapter; the engine knows nothing of it afterwards."""
    with pytest.raises(BadAdapter) as caught:
        llm.add_lora(LoRARequest("bad", lora_path=str(path)))
    assert caught.value.error_code == "BAD_ADAPTER"
    text = str(caught.value)
    assert all(each in text for each in said), text
    assert not llm.list_loras()
    return caught.value


FIELDS = {
    "another method": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "no method": ({"peft_type": None}, "peft_type is None"),
    "rank 0": ({"r": 0}, "r is 0: from 1 to"),
    "a huge rank": ({"r": 10**6}, "r is 1000000: from 1 to"),
    "a rank of another kind": ({"r": "4"}, "r is '4': a whole number"),
    "true for a rank": ({"r": True}, "r is True"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None: a number"),
    "a huge alpha": ({"lora_alpha": 1e30}, "lora_alpha is 1e+30"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "DoRA": ({"use_dora": True}, "use_dora is True"),
    "modules trained whole": ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]"),
    "a field of the future": ({"use_quantum": True}, "use_quantum is True"),
    "a base that training changed": ({"init_lora_weights": "pissa"}, "it changed the base model's weights"),
    "targets of another kind": ({"target_modules": {"q_proj": 1}}, "target_modules is {'q_proj': 1}"),
    "a target without tensors": ({"target_modules": ["q_proj", "c_attn"]}, "c_attn: a target module without tensors"),
    "a regex bomb": ({"rank_pattern": {"(a+)+$": 4}}, "no repeated groups"),
    "a pattern that looks around": ({"alpha_pattern": {"(?!q).*": 4}}, "no look-around"),
    "a pattern that is none": ({"alpha_pattern": {"q[": 4}}, "a regular expression"),
    "a pattern's value": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is 0"),
    "another rank than the tensors'": ({"r": 4}, "q_proj: its rank is 3, and 4 by adapter_config.json"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_is_not_possible_is_refused_by_name(case, llm, broken):
    fields, said = FIELDS[case]
    refused(llm, broken(**fields), said)


def test_all_offenders_are_named_at_once(llm, broken):
    error = refused(llm, broken(bias="all", use_dora=True, r=0))
    assert len(error.details) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ('{"lora_alpha": NaN}', "a value is refused"), ("[]", "not a JSON object"),
     ("[" * 100_000, "nested too deeply"), ('{"r": 4, "r": 8}', "each name once"), (" " * 2**21, "too large")],
)  # fmt: skip
def test_a_configuration_that_is_no_configuration(text, said, llm, broken):
    path = Path(broken())
    (path / "adapter_config.json").write_text(text)
    refused(llm, path, said)


def test_files_that_are_not_there_or_not_files(llm, broken, tmp_path):
    refused(llm, tmp_path / "nowhere", "there is no such directory", "not downloaded")
    refused(llm, "https://example.org/adapter", "there is no such directory")
    path = Path(broken())
    (path / "adapter_model.safetensors").unlink()
    refused(llm, path, "it holds no weights")
    os.mkfifo(path / "adapter_model.safetensors")
    refused(llm, path, "is a FIFO")
    (path / "adapter_config.json").unlink()
    refused(llm, path, "adapter_config.json")


def test_a_pickle_is_never_opened(llm, broken):
    path = Path(broken())
    (path / "adapter_model.safetensors").rename(path / "away")
    (path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    refused(llm, path, "a format that can run code", "adapter_model.bin")
    (path / "adapter_model.bin").rename(path / "adapter_model.safetensors")
    refused(llm, path, "pickle")


@pytest.fixture
def changed(llm, broken):
    """`changed(change)`: the error for an adapter of whose tensors `change` has made something else."""

    def make(change, *said):
        path = Path(broken())
        tensors = load_file(path / "adapter_model.safetensors")
        (path / "adapter_model.safetensors").unlink()
        tensors = change(tensors) or tensors
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
        return refused(llm, path, *said)

    return make


def test_numbers_that_are_none(changed):
    def spoil(tensors):
        tensors[f"{Q}.lora_A.weight"][0, :2] = torch.nan
        tensors[f"{Q}.lora_B.weight"][0, 0] = torch.inf

    error = changed(spoil, f"{Q}.lora_A.weight: 2 NaN or Inf")
    assert len(error.details) == 2


TENSORS = {
    "another base": (lambda t: {n: torch.zeros(3, 40) if n.endswith("A.weight") else x for n, x in t.items()},
                     "layers.1.mlp.up_proj: lora_A is [3, 40], the model takes [3, 32]"),
    "more rows": (lambda t: {**t, f"{Q}.lora_B.weight": torch.zeros(64, 3)},
                  "q_proj: lora_B is [64, 3], the model takes [32, 3]"),
    "a factor alone": (lambda t: {n: x for n, x in t.items() if n != f"{Q}.lora_A.weight"},
                       "q_proj: its lora_A is missing"),
    "a layer that is not there": (lambda t: {n.replace("layers.1.", "layers.9."): x for n, x in t.items()},
                                  "layers.9.self_attn.q_proj: the model has no such layer"),
    "a norm": (lambda t: {**t, "base_model.model.model.norm.lora_A.weight": torch.zeros(3, 32),
                          "base_model.model.model.norm.lora_B.weight": torch.zeros(32, 3)},
               "model.norm: the model has no such layer"),
    "an embedding in a linear layer's clothes": (
        lambda t: {**t, "base_model.model.model.embed_tokens.lora_A.weight": torch.zeros(3, 32),
                   "base_model.model.model.embed_tokens.lora_B.weight": torch.zeros(101, 3)},
        "embed_tokens: it is an embedding here"),
    "a magnitude": (lambda t: {**t, f"{Q}.lora_magnitude_vector": torch.zeros(32)}, "(DoRA) is not possible"),
    "a bias": (lambda t: {**t, f"{Q}.lora_B.bias": torch.zeros(32)}, "trained biases"),
    "whole numbers": (lambda t: {**t, f"{Q}.lora_A.weight": torch.zeros(3, 32, dtype=torch.int32)}, "int32 [3, 32]"),
    "a vector": (lambda t: {**t, f"{Q}.lora_A.weight": torch.zeros(32)}, "float32 [32]; factors are matrices"),
    "an unknown name": (lambda t: {**t, f"{Q}.lora_C.weight": torch.zeros(3, 32)}, "no factor of an adapter"),
    "a name without the prefix": (lambda t: {**t, "q.lora_A.weight": torch.zeros(3, 32)}, "names begin with"),
    "other embeddings": (lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(101, 32)},
                         "other base weights than the model's"),
    "longer embeddings": (lambda t: {**t, "base_model.model.lm_head.base_layer.weight": torch.ones(120, 32)},
                          "base weights [120, 32], where the model has [101, 32]"),
    "a base layer": (lambda t: {**t, f"{Q}.base_layer.weight": torch.zeros(32, 32)}, "an adapter cannot replace"),
    "the same weights twice": (
        lambda t: {**t, f"{Q[:-6]}qkv_proj.lora_A.weight": torch.zeros(3, 32),
                   f"{Q[:-6]}qkv_proj.lora_B.weight": torch.zeros(64, 3)},
        "changes the same weights as"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(case, changed):
    changed(*TENSORS[case])


def test_every_module_that_does_not_fit_is_named(changed):
    assert len(changed(TENSORS["another base"][0]).details) == 14


def test_a_rank_that_no_slot_holds(llm, weights, tmp_path):
    from bestiary.testing.adapters import write_adapter

    name = next(iter(weights))
    wide = {f"base_model.model.{name}.lora_A.weight": torch.zeros(9, weights[name].shape[1]),
            f"base_model.model.{name}.lora_B.weight": torch.zeros(weights[name].shape[0], 9)}  # fmt: skip
    refused(llm, write_adapter(tmp_path / "wide", wide, r=9), "its rank is 9; the slots take 1 to max_lora_rank=8")


def test_requests_that_name_no_adapter(llm):
    for name in ("", "x" * 300, "a\nb", 3):
        with pytest.raises(RequestError, match="lora_name"):
            LoRARequest(name)
    with pytest.raises(RequestError, match="a path is given as lora_path"):
        LoRARequest("sql", "adapters/sql")
    assert LoRARequest("sql", 1, "adapters/sql").lora_path == "adapters/sql"  # as vLLM has it
    with pytest.raises(RequestError, match="UNKNOWN_ADAPTER"):
        llm.generate([{"prompt_token_ids": [3]}], lora_request="sql", use_tqdm=False)
    with pytest.raises(RequestError, match="a LoRARequest, or the name"):
        llm.generate([{"prompt_token_ids": [3]}], lora_request=3, use_tqdm=False)


# --- patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [r"(a*)*b", r"(a|aa)+$", r"(.*)\1", r"a{1,}{2,}", r".*.*.*x", "a" * 300, r"(?i)q", r"[", r"(?P<n>a)", r"x**"],
)
def test_patterns_that_are_not_run(pattern):
    assert problems({pattern: 1})


def test_patterns_as_peft_understands_them():
    names = ("model.layers.1.self_attn.q_proj",)
    for pattern in (
        "q_proj",
        "self_attn.q_proj",
        r"layers\.1\..*q_proj",
        r".*\.q_proj",
        r"model.layers.\d+.self_attn.q_proj",
    ):
        assert not problems({pattern: 1})
        assert re.match(rf"(.*\.)?({pattern})$", names[0])
        assert value_of(compiled({pattern: 5}), names, 1) == 5
    for pattern in ("proj", "layers", r"layers\.2\..*", "q"):
        assert value_of(compiled({pattern: 5}), names, 1) == 1
    assert value_of(compiled({"v_proj": 2, "q_proj": 3, ".*": 4}), names, 1) == 3


def test_the_worst_allowed_patterns_take_no_time():
    worst = compiled({f".*a.*{letter}x": 1 for letter in "abcdefgh"})
    began = time.process_time()
    for _ in range(20):
        value_of(worst, ("a." * 60 + "proj",), 1)
    assert time.process_time() - began < 5  # a bomb would take years


def test_a_configuration_may_be_json_of_any_size_within_its_bounds(llm, broken):
    many = {f"layers.{at}.self_attn.q_proj": 3 for at in range(2000)}
    path = broken(rank_pattern=many)
    assert json.loads((Path(path) / "adapter_config.json").read_text())["rank_pattern"] == many
    assert llm.add_lora(LoRARequest("many", lora_path=path)).rank == 3
