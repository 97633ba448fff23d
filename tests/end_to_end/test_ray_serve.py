"""`bestiary ray`: replicas behind a real Ray Serve, from the command to its end. Needs `bestiary[ray]`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.full
PORT = 8437
URL = f"http://127.0.0.1:{PORT}"
COMMAND = [sys.executable, "-m", "bestiary.serve.cli.main", "ray"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        max_position_embeddings=128, initializer_range=0.3, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(64)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def environment() -> dict[str, str]:
    given = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    return given | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module")
def command(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The command with two replicas of two ranks, ready; the model is named by a relative path."""
    pytest.importorskip("aiohttp", reason="bestiary[ray] is not installed")
    words = tmp_path_factory.mktemp("words") / "stderr"
    with words.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, folder.name, "--replicas", "2", "--tp", "2", "--port", str(PORT), "--device", "cpu"],
            cwd=folder.parent, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == URL, words.read_text()
        yield process
        process.terminate()
        process.wait(60)
        process.stdout.close()


def ask(path: str, body: object = None) -> tuple[int, dict[str, object]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, data), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def actors(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Those that live."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie, too
            if name in " ".join(each.cmdline()):
                found.append(each)
    return found


def test_replicas_answer_requests_and_refuse_bad_ones(command: subprocess.Popen[str], folder: Path) -> None:
    assert len(actors(command, "RankActor")) == 2
    assert ask("/health") == (200, {"status": "ok", "model": folder.name})
    wanted = {"prompt": "w3 w4 w5", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask("/v1/completions", wanted), range(16)))
    assert {status for status, _ in replies} == {200}
    assert len({json.dumps(document["choices"]) for _, document in replies}) == 1
    assert ask("/v1/completions", wanted | {"max_tokns": 1})[0] == 400
    assert ask("/nowhere")[0] == 404


def test_a_replica_that_lost_a_rank_is_replaced(command: subprocess.Popen[str]) -> None:
    lost = actors(command, "RankActor")[0]
    lost.kill()
    deadline = time.monotonic() + 90
    while lost in (found := actors(command, "RankActor")) or len(found) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    good = 0
    while good < 20:  # also in turn: both replicas
        assert time.monotonic() < deadline
        good = good + 1 if ask("/health")[0] == 200 else 0
    assert command.poll() is None


def test_a_signal_ends_the_command_and_everything_that_it_started(command: subprocess.Popen[str]) -> None:
    started = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 0
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "MODEL_NOT_FOUND"),
        (["FOLDER", "--host", "203.0.113.7"], "cannot listen there"),
        (["FOLDER", "--tp", "3", "--device", "cpu", "--port", str(PORT + 1)], "cannot be divided among 3"),
    ],
)
def test_what_cannot_be_served_is_an_error(arguments: list[str], words: str, folder: Path) -> None:
    given = [str(folder) if each == "FOLDER" else each for each in arguments]
    done = subprocess.run([*COMMAND, *given], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stdout == ""
