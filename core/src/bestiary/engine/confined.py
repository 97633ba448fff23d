"""`ConfinedProcess`: work on what others wrote, done in a child which may crash or hang without taking anybody along.

The child has a deadline for each request, after which it is killed, and a limit on memory; it may have one on the
processor's time too, which does not shrink where others are busy. It is started at the first request and stays; the two
speak JSON, a line each way. The child runs a module of ours (`serve_lines`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from bestiary.api.errors import BestiaryError, EngineError

STACK_BYTES = 16 << 20
"""For threads that compile what others wrote. Where it was tried in a child first, that had half as much."""
_READY = "ready"


class ChildFailed(Exception):
    """The child crashed, or took too long and was killed; the text says which. The next request starts another."""


class ConfinedProcess:
    """Owns the child; several threads may call.

    Attributes:
        start_s: how long a start took; before the first, how long it may take.

    Args:
        module: what the child runs. first: what it is told before anything else, made when it is started.
        deadline_s: for one request. start_s: for a start.
        cpu_s: of the processor for one request; the child is told so as its argument, and keeps to it (`rationed`).
    """

    def __init__(
        self,
        module: str,
        *,
        deadline_s: float,
        start_s: float = 20.0,
        cpu_s: float | None = None,
        first: Callable[[], bytes] | None = None,
    ) -> None:
        self._module, self._deadline_s, self._cpu_s, self._first = module, deadline_s, cpu_s, first
        self._longest_start_s = self.start_s = start_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        return None if self._child is None else self._child.pid

    def ask(self, request: bytes) -> Any:
        """The child's answer to one line. Raises `ChildFailed`; EngineError: it cannot be started."""
        with self._lock:
            return self._ask(request)

    def close(self) -> None:
        """End the child; the next request starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> Any:
        child = self._started()
        try:
            _write(child, request)
            line = _read_line(child, self._deadline_s)
        except (OSError, TimeoutError) as cause:
            self._end()
            if isinstance(cause, TimeoutError):
                raise ChildFailed(f"took longer than {self._deadline_s:g} s") from None
            used_up = self._cpu_s is not None and child.returncode == -signal.SIGPROF
            raise ChildFailed(f"computed for longer than {self._cpu_s:g} s" if used_up else "crashed") from None
        except BaseException:
            self._end()  # its answer would be taken for the next one's
            raise
        return json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            begun = time.monotonic()
            path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path if isinstance(entry, str))
            arguments = [] if self._cpu_s is None else [str(self._cpu_s)]
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )
            try:
                if self._first is not None:
                    _write(self._child, self._first())
                ready = json.loads(_read_line(self._child, self._longest_start_s)) == _READY
            except (OSError, TimeoutError, ValueError):
                ready = False
            if not ready:
                self._end()
                raise EngineError(f"the process {self._module} did not start", value=sys.executable)
            self.start_s = time.monotonic() - begun
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def __del__(self) -> None:
        if self._child is not None:
            self._end()


def serve_lines(
    answer: Callable[[Any], object], ration: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
) -> None:
    """The child's part, once it is prepared: a line in, a line out, until there are no more.

    Args:
        ration: around the work on a line of so many characters.
    """
    print(json.dumps(_READY), flush=True)
    for line in sys.stdin:
        with ration(len(line)):
            said = json.dumps(answer(json.loads(line)))
        print(said, flush=True)


@contextmanager
def rationed(cpu_s: float, num_bytes: int) -> Iterator[None]:
    """In the child: inside, the processor for `cpu_s`, after which SIGPROF ends the process, and so much memory of its
    own; it cannot have more than `limit_memory` leaves it."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    least = num_bytes if most == resource.RLIM_INFINITY else min(num_bytes, most)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_DATA, (least, most))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def told(error: BestiaryError) -> dict[str, Any]:
    """An error as the child's answer: the arguments that make it again."""
    shown = error.as_dict()
    fields = {name: shown[name] for name in ("message", "code", "field", "value", "details", "fix")}
    return {**fields, "limit": shown["rule"]}


def limit_memory(num_bytes: int) -> None:
    """The child's first step: so much address space, and no core dumps."""
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, num_bytes)):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def _write(child: subprocess.Popen[bytes], data: bytes) -> None:
    if child.stdin is None:
        raise BrokenPipeError
    os.set_blocking(child.stdin.fileno(), True)
    child.stdin.write(data)
    child.stdin.flush()


def _read_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line; raises TimeoutError, or BrokenPipeError where the child ended first."""
    if child.stdout is None:
        raise BrokenPipeError
    descriptor, deadline, parts = child.stdout.fileno(), time.monotonic() + seconds, [b""]
    while not parts[-1].endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        parts.append(os.read(descriptor, 1 << 20))
        if not parts[-1]:
            raise BrokenPipeError
    return b"".join(parts)
