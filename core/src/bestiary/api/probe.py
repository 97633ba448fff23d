"""Inspecting a model class in a child process, where an import may crash, hang or exit without taking us along.

The child (`python -m bestiary.api.probe QUESTION`, which is JSON) sees no accelerator, so CUDA is never initialised; it
answers in JSON on a pipe of its own, since a plugin may print what it likes. The parent waits `import_timeout_s()`
seconds, then kills the child's whole process group.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Literal

from .alias import Alias
from .conformance import ModelInfo, capabilities, require
from .errors import BestiaryError, BrokenPlugin, InvalidModel, UsageError
from .importing import cause, load_object
from .registering import call

if TYPE_CHECKING:
    import subprocess  # at run time only where a child is started: listing kept answers must be quick

TIMEOUT_S = 30.0
TIMEOUT_VARIABLE = "BESTIARY_IMPORT_TIMEOUT"
_ANSWER_BYTES = 32768  # below a pipe's capacity, so that the child never waits for us
_LONGEST_S = 86400
_OUTPUT_CHARS = 600
_FILE_BYTES = 1 << 28

_MAX_REGISTERED = 256

Outcome = Literal["ok", "failed", "invalid", "crashed", "hung"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a child is to try.

    Attributes:
        value: ``"module:object"``. origin: where that comes from, for messages.
        kind: a model class, an object whose import is all that is asked, or a registrar, which is called.
        architecture: the class's. contexts: import contexts to be in. watcher: of a registrar (`registering.call`).
    """

    value: str
    origin: str
    kind: Literal["class", "object", "registrar"] = "class"
    architecture: str = ""
    contexts: tuple[str, ...] = ()
    watcher: str = ""

    @property
    def key(self) -> str:
        """What answers are kept by: to import a function is not to call it."""
        return f"{self.value}()" if self.kind == "registrar" else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a try in a child process showed. `info` is there when `outcome` is "ok", otherwise `cause` is.

    alias_of: what an `Alias` names. registered, also: what a registrar registered, as in `Registered`, architectures as
    pairs with their ``"module:Class"``. Empty for everything else.
    """

    outcome: Outcome
    info: ModelInfo | None = None
    cause: str = ""
    details: tuple[str, ...] = ()
    alias_of: str = ""
    registered: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        info = None if self.info is None else self.info.as_dict()
        answer = {"outcome": self.outcome, "info": info, "cause": self.cause, "details": list(self.details)}
        return answer | {"alias_of": self.alias_of, "registered": dict(self.registered), "also": list(self.also)}

    @classmethod
    def from_dict(cls, data: Any) -> ProbeResult:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on anything else."""
        outcome, info, why, details = data["outcome"], data["info"], data["cause"], data["details"]
        alias_of, registered, also = data["alias_of"], data["registered"], data["also"]
        if outcome not in ("ok", "failed", "invalid", "crashed", "hung") or (outcome == "ok") != (info is not None):
            raise ValueError("not a probe's answer")
        if (
            not isinstance(why, str)
            or not isinstance(alias_of, str)
            or not isinstance(details, list)
            or not isinstance(also, list)
            or not isinstance(registered, dict)
            or not all(isinstance(each, str) for each in (*details, *also, *registered, *registered.values()))
        ):
            raise TypeError("not a probe's answer")
        return cls(
            outcome=outcome,
            info=None if info is None else ModelInfo.from_dict(info),
            cause=why,
            details=tuple(details),
            alias_of=alias_of,
            registered=tuple(registered.items()),
            also=tuple(also),
        )

    def named(self, architecture: str) -> ProbeResult:
        """The same answer for another architecture that the same class implements."""
        return self if self.info is None else replace(self, info=replace(self.info, architecture=architecture))

    def error(self) -> BestiaryError:
        """What anything but "ok" stands for, to be raised."""
        kind = InvalidModel if self.outcome == "invalid" else BrokenPlugin
        return kind(self.cause, details=self.details, fix="reinstall, upgrade or remove the package")


def import_timeout_s() -> float:
    """How long an import may take: ``$BESTIARY_IMPORT_TIMEOUT`` in seconds, or `TIMEOUT_S`."""
    given = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = TIMEOUT_S if not given else float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_S:
        rule = f"seconds, above 0 and at most {_LONGEST_S}"
        raise UsageError(f"{TIMEOUT_VARIABLE} is refused", field=TIMEOUT_VARIABLE, limit=rule, value=given)
    return seconds


def probe(question: Question, *, timeout_s: float = TIMEOUT_S) -> ProbeResult:
    """Tries it in a child process and says what came of it; never raises for the plugin's sake."""
    import tempfile

    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output:
        try:
            child = _start(question, writer, output)
        finally:
            os.close(writer)
        return outcome_of(child.pid, child.wait, reader, output, question, timeout_s)


def outcome_of(
    pid: int, reap: Callable[[], int], reader: int, output: IO[bytes], question: Question, timeout_s: float
) -> ProbeResult:
    """What the child's answer on `reader`, or its end, or its silence means. Afterwards it is gone and `reader` closed.

    Args:
        reap: waits for the child that has ended, and returns its exit code. output: what it printed.
    """
    try:
        ended = _wait(pid, timeout_s)
    finally:
        kill_group(pid)
        code = reap()
        answer = _read_answer(reader)
    doing = "while registering" if question.kind == "registrar" else "during import"
    if not ended:
        text = f"hung {doing}: no answer in {timeout_s:g} s (from {question.origin})"
        return ProbeResult(outcome="hung", cause=text)
    if answer is not None:
        return answer
    text = f"crashed {doing} ({exit_text(code)}) (from {question.origin})"
    return ProbeResult(outcome="crashed", cause=text, details=tail(output))


def _start(question: Question, writer: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    import subprocess

    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "")
    path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path if isinstance(entry, str))
    command = [sys.executable, "-P", "-m", "bestiary.api.probe"]
    return subprocess.Popen(
        [*command, f"--fd={writer}", "--", json.dumps(asdict(question))],
        env=os.environ | hidden | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[writer],
        start_new_session=True,
    )


def _wait(pid: int, timeout_s: float) -> bool:
    """Whether the child ended in time. It is left unreaped, so that its process group's id stays its own."""
    deadline = time.monotonic() + timeout_s
    pause = 0.002
    try:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except ChildProcessError:
        return True  # a program that ignores SIGCHLD has its children reaped for it
    return True


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the child alone was in it, and has ended
    except PermissionError:
        os.kill(pid, signal.SIGKILL)  # some systems refuse for a group that holds only a zombie


def _read_answer(reader: int) -> ProbeResult | None:
    os.set_blocking(reader, False)  # a grandchild that got away may hold the other end
    try:
        data = os.read(reader, _ANSWER_BYTES * 2)
        return ProbeResult.from_dict(json.loads(data))
    except (BlockingIOError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(reader)


def exit_text(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def tail(output: IO[bytes]) -> tuple[str, ...]:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _OUTPUT_CHARS))
    return tuple(line for line in output.read().decode("utf-8", "replace").splitlines() if line.strip())


def examine(question: Question) -> ProbeResult:
    """In the child: try it, and say what it is."""
    origin = question.origin
    try:
        return _tried(question)
    except InvalidModel as error:
        return ProbeResult(outcome="invalid", cause=error.message, details=error.details)
    except BrokenPlugin as error:
        known_origin = origin in error.message
        return ProbeResult(
            outcome="failed",
            cause=error.message if known_origin else f"{error.message} (from {origin})",
            details=error.details,
        )
    except BaseException as error:  # nobody presses Ctrl-C in this session: it is the plugin's doing
        return ProbeResult(outcome="failed", cause=f"{cause(error)} (from {origin})")


def _tried(question: Question) -> ProbeResult:
    nothing = ModelInfo(architecture=question.architecture, module=question.value, qualname="", categories=())
    if question.kind == "registrar":
        done = call(question.value, question.origin, question.watcher, question.contexts)
        if len(done.models) > _MAX_REGISTERED:
            text = f"it registers {len(done.models)} architectures (from {question.origin})"
            raise BrokenPlugin(text, limit=f"at most {_MAX_REGISTERED}")
        return ProbeResult(outcome="ok", info=nothing, registered=tuple(done.references.items()), also=done.also[:64])
    found = load_object(question.value, question.origin, question.contexts)
    if question.kind == "object":
        alias_of = found.architecture if isinstance(found, Alias) else ""
        return ProbeResult(outcome="ok", info=nothing, alias_of=alias_of)
    cls = require(found, origin=question.origin)
    return ProbeResult(outcome="ok", info=capabilities(cls, question.architecture))


def answer(writer: int, result: ProbeResult) -> None:
    """The child's last act."""
    data = json.dumps(result.as_dict()).encode()
    if len(data) > _ANSWER_BYTES:
        shown = tuple(detail[:200] for detail in result.details[:20])
        data = json.dumps(replace(result, cause=result.cause[:1000], details=shown).as_dict()).encode()
    os.write(writer, data)


def limit_resources() -> None:
    """No core dump, no files beyond 256 MiB: the import of a model class needs neither."""
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, _FILE_BYTES)):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def main(arguments: Sequence[str] | None = None) -> None:
    """The child: answers on `--fd`, then leaves without running anybody's exit handlers."""
    import argparse

    parser = argparse.ArgumentParser(description="Tries what a `Question` asks, and answers in JSON.")
    parser.add_argument("--fd", type=int, default=1)
    parser.add_argument("question", type=json.loads)
    options = parser.parse_args(arguments)
    limit_resources()
    if options.fd > 2:
        os.set_inheritable(options.fd, False)
    question = options.question
    result = examine(Question(**question | {"contexts": tuple(question["contexts"])}))
    answer(options.fd, result)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
