"""A server of ours in processes of its own, for the commands that measure one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bestiary.api.errors import EngineError
from bestiary.serve.cli.chat.server import Server

START_SECONDS = 600.0


@contextmanager
def serving(model: str, engine: Mapping[str, Any], *more: str) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """`bestiary serve`, just started; it ends with the context.

    Args:
        engine: options of the engine. more: further words of the command line.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [word for name, value in engine.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "bestiary", "serve", model, "--port", str(port), "--served-model-name", model]
    process = subprocess.Popen([*command, *flags, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Server.at(f"http://127.0.0.1:{port}"), process
    finally:
        process.terminate()
        process.wait()


def answered(server: Server, process: subprocess.Popen[bytes], path: str, pause: float) -> dict[str, Any]:
    """What a path of the server says, once it does, and with no error; asked every `pause` seconds.

    Raises:
        EngineError: the process ended, or ten minutes went by.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"the server ended with exit status {process.returncode}", code="BENCH_FAILED")
        try:
            with urllib.request.urlopen(f"{server.url.geturl()}{path}", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (urllib.error.URLError, OSError):
            time.sleep(pause)
    raise EngineError("the server did not become ready", code="BENCH_FAILED")
