"""`--dry-run`: the plan of a command, without weights being read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bestiary import LLM
from bestiary.serve.cli.config_files import PROJECT

from .conftest import CONTEXT, Run


@pytest.fixture
def headers_only(tiny: Path, tmp_path: Path) -> Path:
    """The model, whose weights are a header and a hole: whoever loads them finds no number that fits."""
    directory = tmp_path / "hollow"
    directory.mkdir()
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            (directory / path.name).symlink_to(path)
            continue
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        (directory / path.name).write_bytes(data[:header] + b"\xff" * (len(data) - header))
    return directory


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)


def test_the_plan_says_what_would_be_used(headers_only: Path, bestiary: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(PROJECT).write_text("max_num_seqs = 3\n")
    monkeypatch.setenv("BESTIARY_TOP_K", "5")
    monkeypatch.delenv("BESTIARY_KERNELS", raising=False)  # a setting, too
    options = ("--max-model-len", 64, "--kv-cache-memory-bytes", "1M")
    result = bestiary("generate", headers_only, "--dry-run", "--json", *options)
    assert (result.code, result.err) == (0, "")
    plan: dict[str, Any] = result.data
    size = (headers_only / "model.safetensors").stat().st_size
    assert plan["source"]["bytes"] == {"model.safetensors": size}
    assert (plan["plugin"]["package"], plan["plugin"]["version"]) == ("bestiary-llama", "0.1.0")
    assert (plan["runs_on"]["device"], plan["runs_on"]["dtype"]) == ("cpu", "float32")
    assert plan["runs_on"]["ops"]["linear"] and plan["runs_on"]["attention_backend"]
    assert (plan["limits"]["max_model_len"], plan["limits"]["max_num_seqs"]) == (64, 3)
    assert (plan["sampling"]["top_k"], plan["sampling"]["max_tokens"]) == (5, 256)
    assert {each["option"]: each["from"] for each in plan["settings"]} == {
        "max_model_len": "command line",
        "kv_cache_memory_bytes": "command line",
        "max_num_seqs": PROJECT,
        "top_k": "BESTIARY_TOP_K",
    }
    assert plan["problems"] == []


def test_it_is_what_the_engine_then_does(tiny: Path, bestiary: Run) -> None:
    options = ("--max-model-len", 64, "--kv-cache-memory-bytes", 2**20)
    plan = bestiary("generate", tiny, "--dry-run", "--json", *options).data
    with LLM(str(tiny), max_model_len=64, kv_cache_memory_bytes=2**20, progress=False) as llm:
        assert plan["kv_cache"]["blocks"] == llm.engine.stats().kv_cache.num_blocks
        assert plan["runs_on"]["ops"] == dict(llm.engine.ops)


def test_the_plan_for_people_names_every_part(tiny: Path, bestiary: Run) -> None:
    result = bestiary("generate", tiny, "--dry-run", "--tp", 2)
    assert (result.code, result.err) == (0, "")
    titles = [line[2:] for line in result.out.splitlines() if line.startswith("# ")]
    assert titles == [
        "model", "files", "runs on", "ops", "KV cache", "memory by rank", "plan", "limits", "sampling", "settings"
    ]  # fmt: skip
    assert "2 ranks: 2 tensor-parallel" in result.out and "bestiary-llama 0.1.0" in result.out
    assert f"max_model_len           {CONTEXT}" in result.out


def test_what_would_not_start_is_a_problem_and_an_exit_code(tiny: Path, tmp_path: Path, bestiary: Run) -> None:
    hollow = tmp_path / "without-weights"
    hollow.mkdir()
    (hollow / "config.json").write_bytes((tiny / "config.json").read_bytes())
    result = bestiary("generate", hollow, "--dry-run")
    assert result.code == 1
    assert "# problems" in result.out and "holds no weights" in result.out


def test_a_model_that_is_none_is_the_usual_error(bestiary: Run) -> None:
    result = bestiary("generate", "./nowhere", "--dry-run", "--json")
    assert result.code == 2 and result.data["error"]["code"] == "MODEL_NOT_FOUND"


def test_the_plan_of_a_chat_is_one_line_of_json(tiny: Path, bestiary: Run) -> None:
    result = bestiary("chat", tiny, "--dry-run", "--json")
    assert result.code == 0 and result.out.count("\n") == 1
    assert json.loads(result.out)["sampling"]["max_tokens"] == 1024
