"""`llama-server` over loopback: a slot for each request, and no cache of prompts."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .process import LONGEST_SECONDS, Program, running
from .work import Job

_LOOK_SECONDS = 0.01
_SPARE_TOKENS = 32
"""Of the context, for each request: what the server adds to a prompt or keeps free."""


@contextmanager
def serving(folder: Path, file: Path, job: Job) -> Iterator[LlamaServer]:
    """Ready for the requests of one job; it ends with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slots = job["most"]
    command = [
        folder / "llama-server", "-m", file, "-t", job["threads"], "-np", slots, "--kv-unified",
        "-c", slots * (job["context"] + _SPARE_TOKENS), "--host", "127.0.0.1", "--port", port,
        "--no-warmup", "--cache-ram", 0,
    ]  # fmt: skip
    with running("llama-server", command, job["threads"]) as program:
        server = LlamaServer(program, port)
        server.wait_until_ready()
        yield server


class LlamaServer:
    """The client of one."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self._port = port

    def answer(self, prompts: list[list[int]], new: int) -> None:
        """All at once, greedily, until each has `new` tokens. Raises `EngineError`: one has another number."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            lengths = list(pool.map(lambda ids: self._one(ids, new), prompts))
        if lengths != [new] * len(prompts):
            raise self.program.failed(f"answered {lengths} tokens instead of {new}")

    def _one(self, ids: list[int], new: int) -> int:
        body = {"prompt": ids, "n_predict": new, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LONGEST_SECONDS)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            said = connection.getresponse().read()
            return int(json.loads(said)["tokens_predicted"])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise self.program.failed(f"did not answer: {error!r}") from error
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        while True:
            self.program.check()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_LOOK_SECONDS)
