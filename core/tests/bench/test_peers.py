"""`bench peers`: who is started for what and in which order, what is made of it, and the failures of each."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bestiary.api.errors import BestiaryError, EngineError, UsageError
from bestiary.bench.cli import bench
from bestiary.bench.hardware import Hardware
from bestiary.bench.peers import contestants, machine, run, worker
from bestiary.bench.peers.contestants import Library
from bestiary.bench.peers.process import running
from bestiary.bench.peers.work import PeersWork

HERE = Path(__file__).parent
SHORT = ["--prefill-len", "6", "--input-len", "3", "--output-len", "4", "--batch-input-len", "2:5",
         "--batch-output-len", "3"]  # fmt: skip
HARDWARE = {
    "device": "cpu", "name": "a processor", "threads": 1, "bytes_per_s": 1e9, "flops": 1e10, "gemm_dtype": "float32",
    "how": "told",
}  # fmt: skip
MODEL = {
    "cost": {"weight_bytes": 10**7, "kv_bytes": 0, "body_weights": 10**7, "head_weights": 0, "attention_width": 0},
    "vocab_size": 97, "architecture": "A", "dtype": "float32", "ops": {},
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Libraries and the machine are told, not measured; here is written who was started."""
    rates = iter([2e9, 1e9, 4e9])
    monkeypatch.setattr(contestants, "WORKER", HERE / "fake_worker.py")

    def told(work: PeersWork, model: str | None, options: object) -> dict[str, Any]:
        return {"model": MODEL} if model else {"hardware": HARDWARE | {"bytes_per_s": next(rates)}}

    monkeypatch.setattr(run, "ask_machine", told)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("llama-bench", "llama-server"):
        (folder / name).write_text(f"#!{sys.executable}\n" + (HERE / "fake_llama.py").read_text())
        (folder / name).chmod(0o755)
    return folder


def gguf(tmp_path: Path, says: str = "well") -> str:
    (tmp_path / "model.gguf").write_text(says)
    return str(tmp_path / "model.gguf")


def peers(*arguments: object) -> Any:
    return CliRunner().invoke(bench, ["peers", *map(str, arguments)], catch_exceptions=False)


def test_contestants_take_turns_and_medians_are_told(log: Path, programs: Path, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    named = ["--llama-bin", programs, "--transformers", tmp_path]
    options = ["--rounds", 3, "--threads", 1, "--num-prompts", 2, "--output", output, "--json", "--quiet", *SHORT]
    record = json.loads(peers(gguf(tmp_path), *named, *options).stdout)
    assert record == json.loads(output.read_text())
    turns = [("bestiary", "alone"), ("transformers", "alone"), ("bestiary", "together"), ("transformers", "together")]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [tuple(line[:2]) for line in lines] == turns * 3
    assert {line[3] for line in lines} == {"1"}
    assert all(line[2] == [6, 6] if line[1] == "alone" else all(2 <= each <= 5 for each in line[2]) for line in lines)
    assert list(record["results"]) == ["bestiary", "llama.cpp", "transformers"]
    mine = record["results"]["bestiary"]
    assert [each["decode_tok_s"] for each in mine["rounds"]] == [100, 200, 300]
    assert (mine["prefill_tok_s"], mine["decode_tok_s"], mine["output_tok_s_2"]) == (200, 200, 200)
    assert mine["first_token_s"] > 0
    other = record["results"]["llama.cpp"]
    assert (other["prefill_tok_s"], other["decode_tok_s"]) == (200, 50)
    assert other["output_tok_s_2"] > 0 and other["first_token_s"] > 0
    assert record["ratios"]["llama.cpp"]["decode_tok_s"] == 4
    assert record["hardware"]["bytes_per_s"] == 2e9 and len(record["hardware"]["rounds"]) == 3
    assert record["limits"]["decode_tok_s"] == 200  # 10⁷ bytes at 2 GB/s
    assert record["fractions"]["llama.cpp"]["decode_tok_s"] == 0.25
    assert record["contestants"]["llama.cpp"] == {"version": "42 (abc)", "model": "model.gguf"}
    assert record["contestants"]["transformers"]["version"] == "transformers 1.2"
    assert str(tmp_path) not in output.read_text()


def test_a_table_for_people_without_requests(log: Path, programs: Path, tmp_path: Path) -> None:
    done = peers(gguf(tmp_path), "--llama-bin", programs, "--num-prompts", 0, "--rounds", 1, "--threads", 1, *SHORT)
    rows = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["4 tokens at batch 1, tok/s"][-5:] == ["100", "50", "200", "50%", "2.00×"]
    assert rows["prompt of 6, tok/s"][4:6] == ["100", "200"]
    assert "requests" not in done.stdout and "llama.cpp 42 (abc): model.gguf" in done.stdout
    assert "round 1: bestiary prefill_tok_s 100" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no peer is named"),
        (["--llama-bin", "."], "llama-bench is not there"),
        (["--llama-bin", "{bin}"], "llama.cpp's model is not there"),
        (["--llama-model", "x.gguf"], "no programs"),
        (["--transformers", "nowhere"], "model of transformers is not there"),
        (["--openvino", "{bin}", "--openvino-python", "nowhere"], "Python of openvino is not there"),
        (["--openvino-python", "python"], "no model"),
        (["--llama-bin", "{bin}", "--device", "cuda"], "compared on a CPU"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_what_is_missing_is_told_before_anything_runs(
    arguments: list[str], words: str, log: Path, programs: Path
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        peers("smollm2", *(each.replace("{bin}", str(programs)) for each in arguments))
    assert caught.value.fix or caught.value.limit
    assert not log.exists()


@pytest.mark.parametrize(("says", "words"), [("odd", "told no rate"), ("short", "instead of 1")])
def test_a_llama_that_fails_is_told(says: str, words: str, log: Path, programs: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        peers(gguf(tmp_path, says), "--llama-bin", programs, "--rounds", 1, *SHORT)
    assert caught.value.error_code == "BENCH_FAILED"
    assert says == "short" or caught.value.details == ("main: error: no such model",)


def test_a_library_that_fails_is_told_with_its_last_lines(log: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="transformers ended with exit status 1") as caught:
        peers("m", "--transformers", tmp_path, "--transformers-dtype", "bfloat16", "--rounds", 1, *SHORT)
    assert caught.value.details == ("no such number format here",)


def test_the_peak_of_memory_is_the_programs_own() -> None:
    program = "import sys; held = bytearray(96 << 20); print(len(held), flush=True); sys.stdin.read(); import time\n"
    with running("it", [sys.executable, "-c", program + "while True: time.sleep(0.01)"], 1) as it:
        deadline = time.monotonic() + 60
        while (it.peak_bytes or 0) < 96 << 20 and time.monotonic() < deadline:
            it.check()
            time.sleep(0.01)
        assert 96 << 20 <= (it.peak_bytes or 0) < 160 << 20


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


WORK = PeersWork(threads=1, prefill_len=12, input_len=4, output_len=6, requests=(3,), shortest=2, longest=9,
                 batch_output_len=5)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"), [("bestiary", "together"), ("transformers", "alone"), ("transformers", "together")]
)
def test_a_worker_answers_its_job(name: str, part: Any, tiny: str, threads: None) -> None:
    options = {"dtype": "float32"} | ({"device": "cpu"} if name == "bestiary" else {})
    job = WORK.job(part, 97, 1) | {"model": tiny, "options": options}
    version, answer = getattr(worker, name)(job)
    assert version[0].isdigit()
    figures = getattr(worker, part)(answer, job)
    names = ["prefill_tok_s", "decode_tok_s"] if part == "alone" else ["output_tok_s_3"]
    assert list(figures) == names and all(each > 0 for each in figures.values())


def test_a_worker_is_a_program(tiny: str) -> None:
    library = Library("bestiary", tiny, options={"dtype": "float32", "device": "cpu"})
    figures = library.run(WORK.job("alone", 97, 1))
    assert list(figures)[:3] == ["prefill_tok_s", "decode_tok_s", "first_token_s"]
    assert all(each > 0 for each in figures.values()) and library.version


def test_the_openvino_worker_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two pipelines, as far as they are called."""
    made: list[Any] = []

    class Pipeline:
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append((given, options))

        def generate(self, inputs: Any, config: Any) -> Any:
            if isinstance(inputs, list):
                return [types.SimpleNamespace(m_generation_ids=[[0] * each.max_new_tokens]) for each in config]
            return types.SimpleNamespace(tokens=[[0] * config.max_new_tokens])

    library = types.SimpleNamespace(
        __version__="2", LLMPipeline=Pipeline, ContinuousBatchingPipeline=Pipeline,
        GenerationConfig=types.SimpleNamespace, SchedulerConfig=types.SimpleNamespace,
        TokenizedInputs=lambda *parts: parts,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(Tensor=lambda array: array))
    for part, figure in (("alone", "decode_tok_s"), ("together", "output_tok_s_3")):
        job = WORK.job(part, 97, 1) | {"model": "ir", "options": {}}  # type: ignore[arg-type]
        version, answer = worker.openvino(job)
        assert version == "2" and figure in getattr(worker, part)(answer, job)
    (given, options), (many, _) = made
    assert given == ("ir", "CPU") and options["INFERENCE_NUM_THREADS"] == 1
    assert many[1].max_num_seqs == 3 and not many[1].enable_prefix_caching


def test_an_answer_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[4\] tokens instead of 5"):
        worker.seconds(lambda prompts, new: [new - 1], [[1]], 5)


def test_facts_of_the_machine_and_the_model(tiny: str, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.setattr("bestiary.bench.hardware.measure_hardware", lambda device, dtype: Hardware(**HARDWARE))  # type: ignore[arg-type]
    assert machine.facts({"threads": 1, "model": None, "options": {}}) == {"hardware": HARDWARE}
    found = machine.facts({"threads": 1, "model": tiny, "options": {"dtype": "float32", "device": "cpu"}})["model"]
    assert (found["vocab_size"], found["dtype"], found["cost"]["head_weights"]) == (97, "float32", 97 * 32)


def test_rounds_measure_other_prompts_of_the_same_lengths() -> None:
    first, second = (WORK.job("alone", 97, number) for number in (1, 2))
    assert first["prefill"][0] == second["prefill"][0] != first["prefill"][1] != second["prefill"][1]
    assert WORK.job("together", 97, 1)["batches"] == WORK.job("together", 97, 2)["batches"]
    assert issubclass(UsageError, BestiaryError) and PeersWork(threads=1, requests=()).parts == ("alone",)
