"""`bestiary serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .baseline import alive, family
from .client import Answer, ask

_START_SECONDS = 120.0
_PLAIN = ("--log-json", "--dtype", "float32", "--no-progress")


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server:
    """A server, which runs from now to the end of the context, and what it has logged.

    Attributes:
        log: the log's entries so far; what is no JSON stands under "text".
        headers: sent with every request, as an API key is.

    Args:
        environment: further variables, or none where a value is None. descriptors: the most that it may open.
        meddled: it listens to the signals of `meddled.py`. full_disk: where it would log there is no room.
    """

    def __init__(
        self,
        model: Path | str,
        *options: str,
        environment: Mapping[str, str | None] | None = None,
        descriptors: int | None = None,
        meddled: bool = False,
        full_disk: bool = False,
    ) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        program = [str(Path(__file__).with_name("meddled.py"))] if meddled else ["-m", "bestiary"]
        self._port = free_port() if full_disk else 0
        command = [sys.executable, *program, "serve", str(model), *_PLAIN, "--port", str(self._port), *options]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        environment = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        self.log: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self._logged = threading.Condition()
        with ExitStack() as opened:
            self.process = subprocess.Popen(
                command, env={name: value for name, value in environment.items() if value is not None},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
                stderr=opened.enter_context(open("/dev/full", "w")) if full_disk else subprocess.PIPE,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        children = family(self.process.pid) if self.process.poll() is None else {}
        self.process.kill()
        self.process.wait()
        for pid in alive(children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": "", "text": line}
            with self._logged:
                self.log.append(entry)
                self._logged.notify_all()
        with self._logged:
            self._logged.notify_all()

    # --- what it says and is ----------------------------------------------------------------------------------------

    def wait_for(self, message: str) -> dict[str, Any]:
        """The first log entry with this message. Raises RuntimeError where the server ends without it."""

        def found() -> dict[str, Any] | None:
            return next((entry for entry in self.log if entry["message"] == message), None)

        with self._logged:
            self._logged.wait_for(lambda: found() or not self._reader.is_alive(), _START_SECONDS)
            entry = found()
        if entry is None:
            raise RuntimeError(f"the server did not say {message!r}: {self.log[-5:]}")
        return entry

    @property
    def port(self) -> int:
        return self._port or int(str(self.wait_for("listening")["url"]).rpartition(":")[2])

    @property
    def text(self) -> str:
        """Everything that it wrote."""
        return "\n".join(str(entry.get("text", entry)) for entry in self.log)

    @property
    def engine_pid(self) -> int | None:
        """The engine process, while there is one."""
        found = (pid for pid, line in family(self.process.pid).items() if "engine.process.child" in line)
        return next(found, None)

    def ready(self) -> Server:
        """Wait until the model is loaded."""
        self.wait_for("ready")
        return self

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def exit_code(self) -> int:
        """Wait until it has ended."""
        return self.process.wait(_START_SECONDS)

    # --- asking it --------------------------------------------------------------------------------------------------

    async def get(self, path: str) -> Answer:
        return await ask(self.port, path, headers=self.headers)

    async def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get("/server/stats")).json()
        return found

    async def until_listening(self) -> None:
        """What the log says, of a server that has none."""
        while self.process.poll() is None:
            with suppress(ConnectionError):
                await self.get("/health/live")
                return
            await asyncio.sleep(0.01)
        raise RuntimeError(f"the server ended with {self.process.returncode}")

    async def until_ready(self, status: int = 200) -> float:
        """Poll `/health/ready` until it says `status`; seconds that took."""
        started = time.monotonic()
        while (await self.get("/health/ready")).status != status:
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    async def until_quiet(self) -> None:
        """Until nothing runs, nothing waits, and no block of the KV cache is held."""
        while True:
            found = await self.stats()
            if not (found["running"] or found["waiting"] or found["kv"]["used"]):
                return
            await asyncio.sleep(0.02)
