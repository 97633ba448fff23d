"""`bestiary inspect`: exact figures, and not a byte of weight data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import transformers

from bestiary import LLM

from .conftest import CONTEXT, Run


def test_figures_are_exact(bestiary: Run, tiny: Path) -> None:
    found = bestiary("inspect", tiny, "--json", "--max-num-seqs", 3, "--block-size", 8).data
    reference = transformers.LlamaForCausalLM.from_pretrained(tiny)
    assert found["weights"]["parameters"] == reference.num_parameters()
    assert found["weights"]["shared_tensors"] == 1
    stored = found["weights"]["stored"]
    assert [(each["format"], each["type"]) for each in stored] == [("safetensors", "F32")]
    assert stored[0]["bytes"] == reference.num_parameters() * 4
    cache = found["kv_cache"]
    assert cache["bytes_per_token"] == 2 * 2 * (2 * 8) * 4  # key and value, layers, two heads of 8, float32
    assert cache["blocks"] == CONTEXT // 8 * 3
    with LLM(str(tiny), progress=False, max_num_seqs=3, block_size=8) as llm:
        caches = llm.engine.executor.runner.kv_caches.values()
        assert cache["bytes"] == sum(each.numel() * each.element_size() for each in caches)
    assert cache["tokens"] == cache["blocks"] * 8
    assert cache["sequences_of_max_model_len"] == 3
    assert found["config"] | {"rope": None} == {
        "attention_layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "sliding_window": None,
        "vocab_size": reference.config.vocab_size, "max_model_len": CONTEXT, "rope": None, "model_type": "llama",
    }  # fmt: skip
    assert found["plugin"]["architecture"] == "LlamaForCausalLM" and found["plugin"]["package"] == "bestiary-llama"
    assert found["runs_on"]["dtype"] == "float32" and found["runs_on"]["ops"]["linear"]
    assert found["tokenizer"] == {"tokens": reference.config.vocab_size, "chat_template": True, "problem": None}


def test_no_weight_data_is_read(bestiary: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that reads tensors is out of order, and the file's data are a hole."""
    directory = tmp_path / "hollow"
    directory.mkdir()
    for path in tiny.iterdir():
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            header = 8 + int.from_bytes(data[:8], "little")
            with open(directory / path.name, "wb") as file:
                file.write(data[:header])
                file.truncate(len(data))
        else:
            (directory / path.name).write_bytes(data)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weight data was read")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    assert bestiary("inspect", directory, "--json").data["weights"]["stored"][0]["tensors"] > 10


def test_the_table_is_plain_where_it_is_no_terminal(bestiary: Run, tiny: Path) -> None:
    result = bestiary("inspect", tiny)
    assert result.code == 0 and result.err == ""
    assert all(ord(char) < 0x2500 for char in result.out)
    lines = [line.split() for line in result.out.splitlines()]
    assert ["architecture", "LlamaForCausalLM"] in lines
    assert ["chat", "template", "yes"] in lines


def test_other_memory_other_dtype(bestiary: Run, tiny: Path) -> None:
    float32 = bestiary("inspect", tiny, "--json", "--kv-cache-memory-bytes", "64K").data
    half = bestiary("inspect", tiny, "--json", "--kv-cache-memory-bytes", "64K", "--dtype", "float16").data
    assert half["weights"]["bytes_by_dtype"]["float16"] * 2 == float32["weights"]["bytes_by_dtype"]["float32"]
    assert half["kv_cache"]["bytes_per_token"] * 2 == float32["kv_cache"]["bytes_per_token"]
    assert half["kv_cache"]["blocks"] == 2 * float32["kv_cache"]["blocks"] == 65536 // (128 * 16)
    fp8 = bestiary("inspect", tiny, "--json", "--kv-cache-dtype", "fp8_e5m2").data["kv_cache"]
    assert fp8["dtype"] == "float8_e5m2" and fp8["bytes_per_token"] * 4 == float32["kv_cache"]["bytes_per_token"]


def test_a_cache_that_does_not_fit_is_a_notice(bestiary: Run, tiny: Path) -> None:
    result = bestiary("inspect", tiny, "--json", "--kv-cache-memory-bytes", "4K")
    assert result.code == 0
    assert result.data["kv_cache"]["blocks"] is None
    assert any("max_model_len" in text for text in result.data["notices"])


def test_notices_are_part_of_the_document(bestiary: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.engine.loader.vllm_config._cpu_computes", lambda dtype: False)
    result = bestiary("inspect", tiny, "--json", "--device", "cpu", "--hf-overrides", json.dumps({"dtype": "float16"}))
    assert any("float32 instead of" in text for text in result.data["notices"])
    assert (result.code, result.err) == (0, "")


def test_a_config_alone_is_enough_for_dummy_weights(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    found = bestiary("inspect", tmp_path, "--json", "--load-format", "dummy").data
    assert found["weights"]["stored"] == [] and found["weights"]["parameters"] > 0
    assert found["tokenizer"]["tokens"] is None and found["tokenizer"]["problem"]
    assert found["notices"] == []


def test_a_directory_without_weights_says_so_and_why(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    found = bestiary("inspect", tmp_path, "--json").data
    (notice,) = found["notices"]
    assert notice.startswith(f"{tmp_path.name} holds no weights: ") and "\n" not in notice
    assert found["weights"]["stored"] == []
    (tmp_path / "pytorch_model.bin").touch()
    (notice,) = bestiary("inspect", tmp_path, "--json").data["notices"]
    assert "format that can run code (pytorch_model.bin): convert it" in notice


def test_a_missing_tokenizer_is_told_in_words(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    problem = bestiary("inspect", tmp_path, "--json").data["tokenizer"]["problem"]
    assert problem.startswith(f"{tmp_path} holds no tokenizer: add the checkpoint's tokenizer.json")
    assert "field:" not in problem and "BAD_CONFIG" not in problem


def test_every_rank_is_planned_and_none_is_started(bestiary: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a rank took its seat")

    monkeypatch.setattr("bestiary.engine.build.take_seat", refuse)
    whole = bestiary("inspect", tiny, "--json", "--memory-per-rank", "8M").data
    found = bestiary("inspect", tiny, "--json", "--tp", 2, "--pp", 2, "--dp", 2, "--memory-per-rank", "8M").data
    plan = found["plan"]
    assert plan["layout"] == {"tensor": 2, "pipeline": 2, "data": 2, "expert": 1, "ranks": 8, "machines": 1}
    assert [each["ranks"] for each in plan["ranks"]] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert [each["layers"] for each in plan["ranks"]] == [[0, 1], [0, 1], [1, 2], [1, 2]]
    assert (plan["memory_per_rank"], plan["memory_given"]) == (2**23, True)
    for each in plan["ranks"]:
        assert each["kv_cache_bytes_per_token"] * 4 == whole["kv_cache"]["bytes_per_token"]
        taken = each["weight_bytes"] + each["buffers"] + each["adapters"] + each["activations_estimate"]
        assert each["left"] == 2**23 - taken
        assert each["fitting_blocks"] == each["left"] // each["kv_cache_bytes_per_block"]
    assert plan["fitting_blocks"] == min(each["fitting_blocks"] for each in plan["ranks"])
    assert found["kv_cache"]["bytes_per_token"] * 4 == whole["kv_cache"]["bytes_per_token"]
    assert found["weights"] == whole["weights"] and found["config"] == whole["config"]
    assert whole["plan"]["ranks"][0]["ranks"] == [0] and whole["plan"]["layout"]["ranks"] == 1


def test_ranks_that_hold_the_same_share_a_row(bestiary: Run, tiny: Path) -> None:
    lines = bestiary("inspect", tiny, "--tp", 2, "--pp", 2, "--dp", 2, "--memory-per-rank", "8M").out.splitlines()
    start = lines.index("# memory by rank")
    rows = [line.split("  ")[0] for line in lines[start + 2 : start + 4]]
    assert rows == ["0-1, 4-5", "2-3, 6-7"]
    assert any("8 ranks: 2 tensor-parallel x 2 pipeline-parallel x 2 data-parallel" in line for line in lines)


def test_a_rank_without_room_is_a_notice(bestiary: Run, tiny: Path) -> None:
    found = bestiary("inspect", tiny, "--json", "--tp", 2, "--memory-per-rank", "8K").data
    assert found["plan"]["fitting_blocks"] == 0 and found["kv_cache"]["blocks"] is None
    assert any(text.startswith("the weights of rank 0 need ") for text in found["notices"])


def test_sizes_that_do_not_divide_are_an_error_with_what_would(bestiary: Run, tiny: Path) -> None:
    result = bestiary("inspect", tiny, "--json", "--tp", 3, "--pp", 3)
    assert result.code == 1
    error = result.data["error"]
    assert "2 layers cannot fill 3 pipeline stages (rule: at most 2)" in error["details"]
    assert "num_attention_heads = 4 cannot be divided among 3" in " ".join(error["details"])
    assert error["fix"] == "pipeline_parallel_size=2 or less; tensor_parallel_size=1, 2 or 4"
