"""Processes of the server's environment: `bestiary serve`, and the oracle."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0
"""Seconds after which a test that waits has failed."""
KEY = "a-key-for-clients"


def python() -> str:
    """The interpreter of the environment that Bestiary is installed in."""
    found = os.environ.get("BESTIARY_PYTHON")
    if not found:
        raise RuntimeError("BESTIARY_PYTHON is not set: run these tests with scripts/clients")
    return found


def _start(arguments: list[str], **pipes: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([python(), *arguments], cwd=ROOT, env=environment, text=True, **pipes)


class Server:
    """One `bestiary serve`; `url` once it listens. It says what it does in `log`."""

    def __init__(self, folder: Path, model: str, *options: str) -> None:
        self.log = folder / "log.jsonl"
        fixed = ["--port", "0", "--log-json", "--no-progress", "--dtype", "float32", "--api-key", KEY, "--no-web"]
        with self.log.open("w") as log:
            self.process = _start(["-m", "bestiary", "serve", model, *fixed, *options], stdout=log, stderr=log)
        self.url = self._address()

    def _address(self) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            for line in self.log.read_text("utf-8").splitlines():
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("message") == "listening":
                    return str(said["url"])
            time.sleep(0.05)
        raise RuntimeError(f"the server does not listen:\n{self.log.read_text('utf-8')}")

    def wait_ready(self) -> Server:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            if httpx.get(f"{self.url}/health/ready", timeout=PATIENCE).status_code == 200:
                return self
            time.sleep(0.1)
        raise RuntimeError(f"the server is not ready:\n{self.log.read_text('utf-8')}")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        if code:
            raise RuntimeError(f"the server ended with exit code {code}:\n{self.log.read_text('utf-8')}")


class Oracle:
    """Answers of the offline API, each asked for once."""

    def __init__(self, model: Path) -> None:
        self.model = model
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = _start(["-m", "tests.clients.oracle", str(model)], **pipes)
        self._known: dict[str, Any] = {}
        assert self._line() == "ready"

    def chat(self, text: str, **sampling: Any) -> list[dict[str, Any]]:
        """Text and token ids of every answer to one message."""
        return self.ask("chat", messages=[{"role": "user", "content": text}], **sampling)

    def ask(self, what: str, **inputs: Any) -> Any:
        question = json.dumps({"ask": what, "name": str(self.model)} | inputs)
        if question not in self._known:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            self._known[question] = json.loads(self._line())
        return self._known[question]

    def _line(self) -> str:
        select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the oracle ended; standard error says why")
        return line.strip()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
