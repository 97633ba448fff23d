"""Trying an import before doing it, so that a package that ends or hangs the process in it is an error like any other.

An engine is about to import a package that it has not met in this build. `guard` asks, in this order:

1. whether the module is imported already, or an earlier answer about this build is kept (`probe_cache`): no cost;
2. a *copy* of this process, by fork. The copy has torch and the layers already, so that it answers within some 20 ms,
   where a fresh interpreter takes seconds. What it finds out is kept, capabilities included;
3. a fresh interpreter (`probe`), where a copy cannot be had (no fork, or CUDA is in use here) or did not answer: a copy
   may fail for reasons of its own, such as a lock that another thread held. Its word is final.

What an import merely raises is no matter for a trial: the import itself shows it, with its traceback.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NoReturn

from .distributions import Distribution
from .errors import BrokenPlugin
from .probe import TIMEOUT_VARIABLE, ProbeResult, Question, answer, examine, limit_resources, outcome_of, probe
from .probe_cache import ProbeCache

logger = logging.getLogger("bestiary.registry")

COPY_TIMEOUT_S = 10.0
_GAVE_UP = 70


def guard(question: Question, distribution: Distribution, cache: ProbeCache, timeout_s: float) -> None:
    """Returns if the object that a question is about may be imported here, within `timeout_s`.

    Raises:
        BrokenPlugin: it ends the process, or takes longer than `timeout_s`.
    """
    value = question.value
    if value.partition(":")[0].strip() in sys.modules:
        return
    result = ask(question, distribution, cache, timeout_s)
    if result.outcome in ("crashed", "hung"):
        fix = "reinstall, upgrade or remove the package"
        if result.outcome == "hung":
            fix += f"; if it only needs longer: {TIMEOUT_VARIABLE}={2 * timeout_s:g}"
        raise BrokenPlugin(result.cause, field=value, details=result.details, fix=fix)


def ask(question: Question, distribution: Distribution, cache: ProbeCache, timeout_s: float) -> ProbeResult:
    """The answer kept about this build, or one found out now, which is kept unless it is that something was raised."""
    result = cache.get(distribution, question.key)
    if result is None:
        with _patience(question):
            result = _tried(question, timeout_s)
        if result.outcome not in ("failed", "invalid"):
            cache.put(distribution, question.key, result, complain=False)  # without it, it is only tried again
    return result


def _tried(question: Question, timeout_s: float) -> ProbeResult:
    result = _copied(question, min(timeout_s, COPY_TIMEOUT_S))
    if result is not None and result.outcome not in ("crashed", "hung"):
        return result
    return probe(question, timeout_s=timeout_s)


def _copied(question: Question, timeout_s: float) -> ProbeResult | None:
    """The answer of a copy of this process; None where there cannot be one."""
    if not sys.platform.startswith("linux") or _uses_cuda():
        return None
    import tempfile

    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of other threads; see 3. above
                pid = os.fork()
            if pid == 0:
                _be_the_copy(question, writer, output)
        finally:
            os.close(writer)
        return outcome_of(pid, lambda: _reap(pid), reader, output, question, timeout_s)


def _uses_cuda() -> bool:
    """Whether the driver is in use here: a copy could not use it, and a package may."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _be_the_copy(question: Question, writer: int, output: IO[bytes]) -> NoReturn:
    """Try, answer, end. Nothing of the parent's is flushed or finalised, and nothing is printed."""
    code = _GAVE_UP
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.disable()  # it may write to a descriptor of its own
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115  (a notebook's lead elsewhere)
        limit_resources()
        result = examine(question)
        answer(writer, result)
        code = 0
    finally:
        os._exit(code)


def _reap(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0  # a program that ignores SIGCHLD has its children reaped for it


@contextmanager
def _patience(question: Question, after_s: float = 10.0) -> Iterator[None]:
    """A line in the log if what follows takes long."""
    about = ("importing %s (from %s) takes long", question.value, question.origin)
    say = threading.Timer(after_s, logger.warning, about)
    say.daemon = True
    say.start()
    try:
        yield
    finally:
        say.cancel()
