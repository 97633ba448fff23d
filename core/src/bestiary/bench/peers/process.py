"""A program under measurement: started, watched, and told apart from one that failed."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bestiary.api.errors import EngineError

LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 0.05
_TOLD_LINES = 12


@contextmanager
def running(name: str, command: Sequence[object], threads: int, given: str = "") -> Iterator[Program]:
    """A process with so many OpenMP threads; it ends with the context at the latest.

    Args:
        name: what errors call it. given: all that it reads from stdin.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as errors:
        stdin.write(given.encode())
        stdin.seek(0)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        started = time.perf_counter()
        with subprocess.Popen(
            list(map(str, command)), stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            env=environment,
        ) as process:  # fmt: skip
            program = Program(name, process, errors, started)
            try:
                yield program
            finally:
                program.end()


class Program:
    """What is known of one process that runs.

    Attributes:
        peak_bytes: most memory resident in it so far, mapped files included; None where the system does not say.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[bytes], started: float) -> None:
        self._name, self._process, self._errors, self._started = name, process, errors, started
        self._status = Path(f"/proc/{process.pid}/status")
        self.peak_bytes = _peak(self._status)
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watched, daemon=True)
        self._watch.start()

    @property
    def seconds(self) -> float:
        """Since just before it was started."""
        return time.perf_counter() - self._started

    def lines(self) -> Iterator[str]:
        """What it tells, until it ends. Raises `EngineError`: not well."""
        yield from self._process.stdout or ()
        if self._process.wait() != 0:
            raise self.ended()

    def check(self) -> None:
        """Raises `EngineError`: it ended."""
        if self._process.poll() is not None:
            raise self.ended()

    def ended(self) -> EngineError:
        return self.failed(f"ended with exit status {self._process.returncode}")

    def failed(self, how: str) -> EngineError:
        """The error that says so, with the last lines it wrote."""
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").splitlines()
        return EngineError(f"{self._name} {how}", code="BENCH_FAILED", details=said[-_TOLD_LINES:])

    def end(self) -> None:
        self._over.set()
        self._watch.join()
        self._process.terminate()

    def _watched(self) -> None:
        """Look at its peak until it is over; end it when it takes far too long."""
        while not self._over.wait(_LOOK_SECONDS):
            self.peak_bytes = _peak(self._status) or self.peak_bytes
            if self.seconds > LONGEST_SECONDS:
                self._process.kill()


def _peak(status: Path) -> int | None:
    """Linux's `VmHWM`: of the program alone, whatever started it."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None
