"""What importing a module does besides defining things, watched in a fresh process.

The child (`python -m bestiary.testing.import_child module`) loads torch and `bestiary.nn`, then imports the
module under an audit hook and compares the process before and after. It answers with JSON on a pipe of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestiary.api.importing import cause
from bestiary.api.registry import ModelRegistry

MAX_GROWTH_MIB = 32
TIMEOUT_S = 120.0
_RINGS = ("bestiary.engine", "bestiary.serve", "bestiary.bench", "bestiary.testing")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TAIL = 400


@functools.cache
def watch_import(module: str) -> tuple[str, ...]:
    """What is wrong with importing a module: one line each, none where it is clean. Watched once a process."""
    path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path)
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryDirectory() as folder, os.fdopen(reader, "rb") as answer:
            try:
                run = subprocess.run(
                    [sys.executable, "-P", "-m", "bestiary.testing.import_child", module, str(writer)],
                    env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                    cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                    pass_fds=[writer], timeout=TIMEOUT_S, check=False,
                )  # fmt: skip
            finally:
                os.close(writer)
            data = answer.read()
    except subprocess.TimeoutExpired:
        return (f"hangs: no answer in {TIMEOUT_S:g} s",)
    if not data:
        return (f"ends the process (exit {run.returncode}): {(run.stderr or run.stdout)[-_TAIL:].strip()}",)
    return tuple(json.loads(data))


def main(module: str, answer: int) -> None:
    """The child's whole life."""
    os.set_inheritable(answer, False)
    import torch

    import bestiary.nn  # noqa: F401

    from_before = _Process()
    events: list[str] = []
    with _printed() as printed:
        sys.addaudithook(lambda event, arguments: _note(event, arguments, events))
        try:
            with ModelRegistry.importing():
                importlib.import_module(module)
        except BaseException as error:  # SystemExit too: it is the module's doing
            events.append(f"raises {cause(error)}")
    problems = [*dict.fromkeys(events), *from_before.changes(), *printed]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        problems.append("initialises CUDA")
    os.write(answer, json.dumps(problems).encode())
    os._exit(0)


class _Process:
    """The process as it was."""

    def __init__(self) -> None:
        self.modules = set(sys.modules)
        self.threads = threading.active_count()
        self.mib = _resident_mib()

    def changes(self) -> Iterator[str]:
        rings = sorted(name for name in set(sys.modules) - self.modules if name.startswith(_RINGS))
        if rings:
            yield f"loads {', '.join(rings[:6])}: a plugin imports bestiary.nn and bestiary.api"
        if threading.active_count() > self.threads:
            yield f"starts {threading.active_count() - self.threads} thread(s)"
        growth = _resident_mib() - self.mib
        if growth > MAX_GROWTH_MIB and "transformers" not in set(sys.modules) - self.modules:
            yield f"allocates {growth:.0f} MiB; at most {MAX_GROWTH_MIB} are allowed"


def _note(event: str, arguments: tuple[Any, ...], events: list[str]) -> None:
    if event == "open":
        name, _, flags = arguments
        if (
            isinstance(name, str | bytes)
            and isinstance(flags, int)
            and flags & _WRITING
            and os.fsdecode(name) != os.devnull
        ):
            events.append(f"writes the file {os.fsdecode(name)}")
    elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        events.append(f"uses the network ({event})")
    elif event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn"):
        events.append(f"starts a process ({event})")


def _resident_mib() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0.0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def _printed() -> Iterator[list[str]]:
    """What reaches the process's standard output and error, by whatever way, as lines of the report."""
    found: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)
            file.seek(0)
            text = file.read().decode("utf-8", "replace").strip()
            if text:
                found.append(f"prints {text[:_TAIL]!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
