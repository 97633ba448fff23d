"""`bestiary serve` from its start to its end, as a process of its own, on a random model of two layers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import TEMPLATE, Run

DEADLINE = 120
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 258,
    "max_position_embeddings": 100_000, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
}  # fmt: skip
RANDOM = ["--load-format", "dummy", "--num-gpu-blocks-override", "4000", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory without weights."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("served") / "two-layers"
    directory.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    settings = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


class Served:
    """A server that was started; `url` once it listens."""

    def __init__(self, model: Path, *options: object) -> None:
        command = [sys.executable, "-m", "bestiary", "serve", str(model), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)

    @property
    def url(self) -> str:
        return (self.process.stdout or sys.stdin).readline().strip()

    def wait_ready(self, url: str) -> None:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
            time.sleep(0.05)
        raise TimeoutError("".join(self.lines))

    def ended(self) -> tuple[int, str]:
        """The exit code and all that was said."""
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code, "".join(self.lines)


@contextlib.contextmanager
def served(model: Path, *options: object) -> Iterator[Served]:
    server = Served(model, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        for pipe in (server.process.stdout, server.process.stderr):
            if pipe is not None:
                pipe.close()


def engine_of(server: Served) -> int:
    """The process id of the engine: the child that outlives the others."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return next(int(each) for each in children if b"engine.process" in Path(f"/proc/{each}/cmdline").read_bytes())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Stream(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.begun, self.events = threading.Event(), []
        self._url, self._tokens = url, tokens

    def run(self) -> None:
        body: dict[str, Any] = {"prompt": "x", "stream": True, "max_tokens": self._tokens, "ignore_eos": True}
        url, headers = f"{self._url}/v1/completions", bearer("a")
        with httpx.stream("POST", url, json=body, headers=headers, timeout=DEADLINE) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    self.begun.set()


def test_a_server_serves_drains_and_ends(model: Path) -> None:
    keys = ["--api-key", "a", "--api-key", "b"]
    with served(model, *RANDOM, *keys, "--drain", DEADLINE) as server, httpx.Client(timeout=DEADLINE) as http:
        url, http.headers = server.url, bearer("a")
        assert [each["id"] for each in http.get(f"{url}/v1/models").json()["data"]] == ["two-layers"]
        server.wait_ready(url)
        assert "<html" in httpx.get(url).text
        chat = {"messages": [{"role": "user", "content": "Hi, " * 20}], "max_tokens": 3}

        def cached(key: str) -> int:
            answer = http.post(f"{url}/v1/chat/completions", json=chat, headers=bearer(key)).json()
            assert answer["usage"]["completion_tokens"] == 3
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached("a"), cached("b"), cached("b"), cached("a")] == [0, 0, 96, 96]
        engine = engine_of(server)
        short, long = Stream(url, 300), Stream(url, 60_000)
        for stream in (short, long):
            stream.start()
            assert stream.begun.wait(DEADLINE)
        server.process.send_signal(signal.SIGTERM)
        refused = http.post(f"{url}/v1/chat/completions", json=chat)
        while refused.status_code == 200:  # it was there before the signal
            refused = http.post(f"{url}/v1/chat/completions", json=chat)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_shutdown")
        assert httpx.get(f"{url}/health/ready").json()["status"] == "draining"
        short.join(DEADLINE)
        assert short.events[-1] == "[DONE]"
        server.process.send_signal(signal.SIGTERM)
        code, said = server.ended()
        long.join(DEADLINE)
    assert json.loads(long.events[-1])["error"]["code"] == "server_shutdown"
    assert (code, "Traceback" in said) == (0, False), said
    assert "ready after" in said and url in said
    assert not Path(f"/proc/{engine}").exists()


def test_ctrl_c_before_the_model_is_there_and_log_lines_as_json(model: Path) -> None:
    with served(model, *RANDOM, "--log-json", "--log-requests") as server:
        url, end = None, time.monotonic() + DEADLINE
        while url is None and time.monotonic() < end:
            found = [json.loads(line) for line in server.lines if line.startswith("{")]
            url = next((each["url"] for each in found if each["message"] == "listening"), None)
        assert httpx.get(f"{url}/health/ready").status_code == 503
        httpx.get(f"{url}/nowhere", headers={"x-request-id": "mine"})
        server.process.send_signal(signal.SIGINT)
        code, said = server.ended()
    assert code == 130, said
    assert "Traceback" not in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]  # native code may say more
    refused = next(each for each in lines if each["logger"] == "bestiary.http" and "refused" in each["message"])
    assert (refused["code"], refused["status"], refused["request_id"]) == ("NOT_FOUND", 404, "mine")
    assert any(each.get("path") == "/health/ready" and each["outcome"] == "finished" for each in lines)


def test_a_model_that_cannot_be_loaded_ends_the_server(model: Path) -> None:
    with served(model, "--device", "cpu") as server:  # no weights
        code, said = server.ended()
    assert code == 2
    assert "NO_WEIGHTS" in said or "weights" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--enable-runtime-lora"], "--lora-dir"),
        (["--lora-dir", "."], "--enable-runtime-lora"),
        (["--api-key", "two words"], "API key"),
        (["--api-key-file", "/dev/null"], "no key in the file"),
        (["--json"], "--dry-run"),
        (["--port", "70000"], "70000"),
        (["--host", "203.0.113.9"], "cannot listen"),
    ],
)
def test_options_that_cannot_be(bestiary: Run, model: Path, options: list[str], words: str) -> None:
    result = bestiary("serve", model, *options)
    assert result.code == 1
    assert words in result.err


def test_a_model_that_is_none(bestiary: Run, tmp_path: Path) -> None:
    result = bestiary("serve", tmp_path, "--port", "0")
    assert result.code == 2 and "Traceback" not in result.err


def test_a_dry_run_says_where_it_would_listen(bestiary: Run, model: Path) -> None:
    result = bestiary("serve", model, *RANDOM, "--dry-run", "--json", "--port", "8123", "--api-key", "abc")
    assert result.code == 0, result.err
    server = result.data["more"]["server"]
    assert (server["listens at"], server["API keys"]) == ("127.0.0.1:8123", 1)
    assert "abc" not in result.out
