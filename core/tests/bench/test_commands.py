"""Both commands, on a tiny model, against transformers: the record's shape, and that both give the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from click.testing import CliRunner

from bestiary.api.errors import EngineError
from bestiary.bench import run
from bestiary.bench.cli import bench
from bestiary.bench.hardware import Hardware
from bestiary.serve.cli import main

COMMON = ["--dtype", "float32", "--device", "cpu", "--repeats", "2", "--quiet", "--compare", "transformers"]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Hardware("cpu", "a processor", 1, 1e9, 1e10, "float32", "told")
    monkeypatch.setattr(run, "measure_hardware", lambda device, dtype: machine)


def test_latency(tiny: str, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    lengths = ["--prefill-len", "12", "--input-len", "4", "--output-len", "6", "--output", str(output)]
    done = CliRunner().invoke(bench, ["latency", tiny, *COMMON, *lengths, "--json"], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record == json.loads(output.read_text())
    assert list(record["results"]) == ["bestiary", "transformers"]
    decode = record["results"]["bestiary"]["decode"]
    assert (decode["input_len"], decode["output_len"], len(decode["rounds"])) == (4, 6, 2)
    reached = decode["decode_tok_s"] / record["limits"]["decode_tok_s"]
    assert record["fractions"]["bestiary"]["decode"] == pytest.approx(reached, rel=1e-4)
    assert str(Path(tiny).parent) not in output.read_text()
    # two layers of (32→64 qkv, 32→32, 32→96, 48→32) and two norms, a final norm, and the head, which is the embedding
    layer = 32 * 64 + 32 * 32 + 32 * 96 + 48 * 32 + 2 * 32
    assert record["limits"]["weight_bytes_per_step"] == 4 * (2 * layer + 32 + 97 * 32)
    assert record["limits"]["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4


def test_experts_that_transformers_keeps_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=1, vocab_size=97, max_position_embeddings=64,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    lengths = ["--prefill-len", "12", "--input-len", "4", "--output-len", "6"]
    done = CliRunner().invoke(bench, ["latency", str(tmp_path), *COMMON, *lengths, "--json"], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert list(record["results"]) == ["bestiary", "transformers"]
    assert record["limits"]["experts_chosen"] == 0.25
    assert record["limits"]["expert_bytes"] == 4 * 2 * 4 * 3 * 32 * 48


def test_throughput(tiny: str) -> None:
    lengths = ["--num-prompts", "3", "--input-len", "2:9", "--output-len", "5"]
    done = CliRunner().invoke(bench, ["throughput", tiny, *COMMON, *lengths, "--json"], catch_exceptions=False)
    record = json.loads(done.stdout)
    mine = record["results"]["bestiary"]
    assert (mine["requests"], mine["output_tokens"]) == (3, 15)
    assert mine["total_tok_s"] > mine["output_tok_s"] > 0
    assert record["workload"] == {
        "seed": 0, "requests": 3, "shortest": 2, "longest": 9, "output_len": 5, "repeats": 2,
    }  # fmt: skip


def test_a_table_for_people(tiny: str) -> None:
    lengths = ["--prefill-len", "5", "--input-len", "2", "--output-len", "3"]
    done = CliRunner().invoke(bench, ["latency", tiny, *COMMON, *lengths], catch_exceptions=False)
    assert "decode tok/s" in done.stdout and "×" in done.stdout and "\x1b" not in done.stdout


def test_both_subjects_hold_the_same_weights(tiny: str) -> None:
    import torch

    from bestiary import LLM, SamplingParams
    from bestiary.bench.against_transformers import transformers_subject

    with LLM(tiny, dtype="float32", skip_tokenizer_init=True, progress=False) as llm:
        other = transformers_subject(llm)._model
        ids = [5, 9, 11, 3]
        (output,) = llm.generate(
            [{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False
        )
        want = other.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert output.outputs[0].token_ids == want[0, 4:].tolist()


@pytest.mark.parametrize("lengths", ["few", "0", "9:3", "5:x"])
def test_a_bad_length_is_a_usage_error(lengths: str) -> None:
    done = CliRunner().invoke(bench, ["throughput", "m", "--input-len", lengths])
    assert done.exit_code == 2 and "SHORTEST:LONGEST" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["latency"],
            ["513 tokens", "at most 64", "--prefill-len (now 512)", "--input-len and --output-len (32 + 128)"],
        ),
        (["throughput"], ["320 tokens", "at most 64", "--input-len (now 64:256) and --output-len (64)"]),
        (["latency", "--max-model-len", "50"], ["513 tokens", "--max-model-len 50", "--prefill-len"]),
        (["latency", "--max-model-len", "600"], ["at most 64", "rotary scaling"]),
    ],
    ids=" ".join,
)
def test_a_short_context_says_which_lengths_to_lower(
    arguments: list[str], words: list[str], tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["bench", *arguments[:1], tiny, *arguments[1:]]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert said.count("fix:") == 1


@pytest.mark.parametrize("command", ["latency", "throughput"])
def test_quiet_and_debug_are_options_as_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", command, "./nowhere", "-q", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "MODEL_NOT_FOUND" in said


@pytest.fixture
def speaking(tiny: str, tmp_path: Path) -> str:
    """With a tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(letters))}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    return str(folder)


def test_http(speaking: str, tmp_path: Path) -> None:
    """A real server and the offline API do the same work."""
    output = tmp_path / "record.json"
    given = ["--streams", "3", "--input-len", "4", "--output-len", "5", "--repeats", "1", "--output", str(output)]
    options = ["--dtype", "float32", "--device", "cpu", "--quiet", "--json"]
    done = CliRunner().invoke(bench, ["http", speaking, *options, *given], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record == json.loads(output.read_text())
    found = record["results"]
    assert found["lost"] == pytest.approx(1 - found["http"] / found["offline"], rel=1e-3)
    assert len(found["rounds"]) == 1 and found["client_cpu_per_1000"] > 0
    assert str(tmp_path) not in output.read_text()


def test_start(speaking: str, tmp_path: Path) -> None:
    """A real server, from its command to a token."""
    output = tmp_path / "record.json"
    options = ["--dtype", "float32", "--repeats", "1", "--quiet", "--output", str(output)]
    done = CliRunner().invoke(bench, ["start", speaking, *options], catch_exceptions=False)
    record = json.loads(output.read_text())
    found = record["results"]
    assert found["phases"].keys() >= {"import torch", "load the model"}
    rest = found["first_token"] - found["phases"]["import torch"] - found["phases"]["load the model"]
    assert found["elsewhere"] == pytest.approx(rest, rel=1e-3)
    assert 0 < found["listening"] <= found["ready"] < found["first_token"]
    assert len(found["rounds"]) == 1 and str(tmp_path) not in output.read_text()
    assert "neither torch nor weights" in done.stdout and "  import torch" in done.stdout


def test_a_server_that_ends_before_it_starts_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="ended with exit status 2"):
        CliRunner().invoke(bench, ["start", str(tmp_path / "nowhere"), "--quiet"], catch_exceptions=False)
