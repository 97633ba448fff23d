"""`--lora` and `--lora-name`: which adapter answers, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.testing.adapters import random_adapter, write_adapter

from .conftest import Run

PROMPT = "the quick brown"
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters for the queries of the tiny Llama."""
    folder = tmp_path_factory.mktemp("adapters")
    weights = {f"model.layers.{layer}.self_attn.o_proj": torch.empty(32, 32) for layer in range(2)}
    return {
        name: write_adapter(folder / name, random_adapter(weights, seed=seed), lora_alpha=40.0)
        for seed, name in enumerate(("sql", "poems"))
    }


@pytest.fixture(scope="module")
def answers(tiny: Path, adapters: dict[str, str]) -> dict[str | None, str]:
    with LLM(str(tiny), progress=False, enable_lora=True) as llm:
        chosen = [None, *(LoRARequest(name, lora_path=path) for name, path in adapters.items())]
        outputs = llm.generate([PROMPT] * 3, GREEDY, lora_request=chosen, use_tqdm=False)
    return dict(zip([None, *adapters], [output.outputs[0].text for output in outputs], strict=True))


def lora(adapters: dict[str, str], *names: str) -> list[str]:
    return [word for name in names for word in ("--lora", f"{name}={adapters[name]}")]


def test_the_only_adapter_answers(
    bestiary: Run, tiny: Path, adapters: dict[str, str], answers: dict[str | None, str]
) -> None:
    assert len(set(answers.values())) == 3
    result = bestiary("generate", tiny, PROMPT, "--max-tokens", 8, "--json", *lora(adapters, "sql"))
    assert result.data["outputs"][0]["text"] == answers["sql"]
    assert result.data["lora_name"] == "sql"
    result = bestiary("generate", tiny, PROMPT, "--max-tokens", 8, "--json")
    assert (result.data["outputs"][0]["text"], result.data["lora_name"]) == (answers[None], None)


def test_one_of_several_is_chosen_by_name(
    bestiary: Run, tiny: Path, adapters: dict[str, str], answers: dict[str | None, str]
) -> None:
    both = lora(adapters, "sql", "poems")
    result = bestiary("generate", tiny, PROMPT, "--max-tokens", 8, *both, "--lora-name", "poems", "--quiet")
    assert result.out.rstrip("\n") == answers["poems"].rstrip("\n")
    result = bestiary("generate", tiny, PROMPT, *both)
    assert result.code == 1
    assert "--lora-name says which adapter answers: sql, poems" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lora", "sql"], "is not NAME=VALUE"),
        (["--lora", "a=x", "--lora", "a=y"], "--lora a=… is given twice"),
        (["--lora", "a=x", "--lora-name", "b"], "--lora-name 'b' is none of the adapters given (a)"),
        (["--lora-name", "b"], "--lora NAME=PATH adds one"),
    ],
)
def test_choices_that_make_no_sense(arguments: list[str], said: str, bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, PROMPT, *arguments)
    assert result.code == 1
    assert said in result.err


def test_an_adapter_that_does_not_fit_ends_the_command(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    bad = write_adapter(tmp_path / "bad", random_adapter({"model.layers.7.mlp.up_proj": torch.empty(48, 32)}))
    result = bestiary("generate", tiny, PROMPT, "--json", "--lora", f"bad={bad}")
    assert result.code == 2
    error = result.data["error"]
    assert error["code"] == "BAD_ADAPTER"
    assert error["details"] == ["model.layers.7.mlp.up_proj: the model has no such layer"]
    assert "layers.7.mlp.up_proj" in result.err


def test_a_conversation_has_the_adapter(bestiary: Run, tiny: Path, adapters: dict[str, str]) -> None:
    common = ("chat", tiny, "--temperature", 0, "--max-tokens", 6, "--json")
    plain = json.loads(bestiary(*common, stdin="hi\n").out)
    with_adapter = json.loads(bestiary(*common, *lora(adapters, "sql"), stdin="hi\n").out)
    assert (plain["lora_name"], with_adapter["lora_name"]) == (None, "sql")
    assert plain["answer"] != with_adapter["answer"]


def test_inspect_shows_slots_and_targets(bestiary: Run, tiny: Path, adapters: dict[str, str]) -> None:
    found = bestiary("inspect", tiny, "--json", *lora(adapters, "sql"), "--max-loras", 2, "--max-lora-rank", 4).data
    own = found["adapters"]
    assert (own["enabled"], own["max_loras"], own["max_lora_rank"]) == (True, 2, 4)
    assert own["given"] == [{"name": "sql", "path": adapters["sql"], "rank": 3}]
    vocabulary = found["config"]["vocab_size"]
    linear = (32 * 3 + 64) + (32 + 32) + (32 * 2 + 96) + (48 + 32)  # a factor of each of q, k, v; o; gate, up; down
    assert own["bytes"] == 2 * 4 * 4 * (2 * linear + 2 * (vocabulary + 32))
    assert "q_proj" in own["targets"] and "lm_head" in own["targets"] and "norm" not in own["targets"]
    table = bestiary("inspect", tiny).out
    assert "4 of rank 64 (without --lora: none)" in table
    result = bestiary("inspect", tiny, "--lora", f"x={tiny}")
    assert (result.code, "adapter_model.safetensors" in result.err) == (2, True)
