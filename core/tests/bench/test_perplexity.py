"""`bench perplexity`: windows that score each token once, figures that are transformers', methods side by side."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bestiary.api.errors import UsageError
from bestiary.bench.cli import bench
from bestiary.bench.perplexity import TEXT, engine_changes, windows
from bestiary.serve.cli import main

WORDS = [f"w{index}" for index in range(96)]
COMMON = ["--dtype", "float32", "--device", "cpu", "--quiet"]


@given(count=st.integers(0, 300), window=st.integers(2, 60), stride=st.integers(1, 59))
def test_windows_score_every_token_once(count: int, window: int, stride: int) -> None:
    stride = min(stride, window - 1)
    scored = []
    for each in windows(count, window, stride):
        assert each.begin <= each.scored < each.end <= each.begin + window
        assert each.scored == 0 or each.scored - each.begin >= window - stride
        scored += range(each.scored, each.end)
    assert scored == list(range(count))


def with_tokenizer(tiny: str, folder: Path, bos: bool) -> Path:
    shutil.copytree(tiny, folder)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, **{word: at + 1 for at, word in enumerate(WORDS)}}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some words.txt"
    chosen = torch.randint(0, len(WORDS), (100,), generator=torch.Generator().manual_seed(1)).tolist()
    path.write_text(" ".join(WORDS[at] for at in chosen))
    return path


def by_transformers(folder: Path, text: Path, window: int, stride: int, bos: bool) -> tuple[float, int]:
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ids = [int(word[1:]) + 1 for word in text.read_text().split()]
    losses: list[float] = []
    begin = scored = 0
    while scored < len(ids):
        end = min(begin + window, len(ids))
        row = [0] * bos + ids[begin:end]
        with torch.inference_mode():
            logprobs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        first = max(scored - begin + bos, 1)
        losses += [-float(logprobs[at - 1, row[at]]) for at in range(first, len(row))]
        begin, scored = begin + stride, end
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("bos", [False, True])
def test_figures_are_transformers(tiny: str, text: Path, tmp_path: Path, bos: bool) -> None:
    folder = with_tokenizer(tiny, tmp_path / "model", bos)
    arguments = ["--text", str(text), "--window", "40", "--stride", "15", "--method", "kv=fp8", "--method", "int8"]
    output = tmp_path / "record.json"
    done = CliRunner().invoke(
        bench,
        ["perplexity", str(folder), *COMMON, *arguments, "--json", "--output", str(output)],
        catch_exceptions=False,
    )
    record = json.loads(done.stdout)
    assert record == json.loads(output.read_text()) and record["kind"] == "perplexity"
    assert str(tmp_path) not in output.read_text()
    plain, fp8, int8 = (record["results"][name] for name in ("float32", "float32+kv=fp8", "int8"))
    mean, count = by_transformers(folder, text, 40, 15, bos)
    assert plain["tokens"] == count == 100 - (not bos)
    assert plain["nats_per_token"] == pytest.approx(mean, abs=1e-4)
    assert plain["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert fp8["kv_bytes_per_token"] * 4 == int8["kv_bytes_per_token"] == plain["kv_bytes_per_token"]
    assert int8["weight_bytes"] < plain["weight_bytes"] == fp8["weight_bytes"]
    for other in (fp8, int8):
        more = other["nats_per_token"] - plain["nats_per_token"]
        assert other["nats_more"] == pytest.approx(more, abs=1e-4) and 0 < abs(more) < 0.2
    assert record["workload"] | {"sha256": None} == {
        "text": "some words.txt", "sha256": None, "tokens": 100, "scored": count,
        "before_each_window": [0] if bos else [], "window": 40, "stride": 15,
    }  # fmt: skip


def test_a_table_for_people_and_the_text_of_ours(tiny: str, tmp_path: Path) -> None:
    assert 1200 <= len(TEXT.read_text("utf-8").split()) <= 1300
    folder = with_tokenizer(tiny, tmp_path / "model", False)
    done = CliRunner().invoke(
        bench, ["perplexity", str(folder), *COMMON, "--method", "int8+kv=fp8_e5m2"], catch_exceptions=False
    )
    assert "perplexity.txt" in done.stdout and "windows of 63, stride 31" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[-2:]] == ["float32", "int8+kv=fp8_e5m2"]
    assert rows[-1][3].endswith("%")


def test_methods_by_name() -> None:
    assert engine_changes("int8") == {"quantization": "int8"}
    assert engine_changes("kv=fp8") == {"kv_cache_dtype": "fp8"}
    assert engine_changes("gguf+kv=fp8") == {"quantization": "gguf", "kv_cache_dtype": "fp8"}
    for wrong in ("", "int8+", "int8+gguf", "kv=", "kv=fp8+kv=fp8"):
        with pytest.raises(UsageError, match="this is no method"):
            engine_changes(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--window", "64"], ["window", "2 to 63"]),
        (["--window", "8", "--stride", "8"], ["windows must overlap", "1 to 7"]),
        (["--method", "int9"], ["int9", "int8"]),
        (["--text", "absent.txt"], ["absent.txt cannot be read"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], words: list[str], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_tokenizer(tiny, tmp_path / "model", False)
    assert main.run(["bench", "perplexity", str(folder), "--quiet", *arguments]) != 0
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
