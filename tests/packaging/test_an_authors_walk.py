"""An author's whole way outside this repository, from wheels alone: new, edit, build, install, certify, generate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent))
from workshop import CLEAN, Built, build, installed, make_environment

WORDS = [f"w{number}" for number in range(90)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, transformers.LlamaForCausalLM]:
    """A model of the author's architecture, as transformers wrote it."""
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text()) | {"architectures": ["TopazForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


def edit(project: Path) -> None:
    """Another release, another tiny model."""
    for path, old, new in (
        ("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"'),
        ("src/topaz/contract.py", '"intermediate_size": 80', '"intermediate_size": 88'),
    ):
        text = (project / path).read_text()
        assert text.count(old) == 1
        (project / path).write_text(text.replace(old, new))


def test_from_nothing_to_an_answer(
    built: dict[str, Built], checkpoint: tuple[Path, transformers.LlamaForCausalLM], tmp_path: Path
) -> None:
    python = make_environment(tmp_path)
    installed(python, built["bestiary"].wheel)
    environment = CLEAN | {"HOME": str(tmp_path), "BESTIARY_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
                           "OMP_NUM_THREADS": "1"}  # fmt: skip

    def bestiary(*arguments: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [python, "-m", "bestiary", *map(str, arguments)], env=environment, cwd=tmp_path, text=True,
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    folder, reference = checkpoint
    bestiary("generate", folder, "w5 w17", code=2)  # nobody has Topaz yet
    bestiary("new", "topaz")
    edit(tmp_path / "topaz")
    build(tmp_path / "topaz", tmp_path / "dist", "--wheel")
    (wheel,) = (tmp_path / "dist").glob("topaz-0.2.0-*.whl")
    installed(python, wheel)

    certificate: dict[str, Any] = json.loads(bestiary("certify", "topaz", "--json"))
    assert (certificate["verdict"], certificate["version"]) == ("certified", "0.2.0")
    (row,) = json.loads(bestiary("models", "--json", "--installed"))["architectures"]
    assert (row["architecture"], row["status"]) == ("TopazForCausalLM", "ok")
    assert (row["certificate"]["verdict"], row["certificate"]["build"]) == ("certified", "same")

    ids = [5, 17, 3]
    expected = reference.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0, len(ids) :].tolist()
    answer = bestiary("generate", folder, "w5 w17 w3", "--max-tokens", "6", "--quiet", "--dtype", "float32")
    assert answer.split() == [WORDS[each] for each in expected]
