"""Inspecting a model class in a child process, where an import may crash, hang or exit without taking us along.

The child (`python -m bestiary.api.probe module:Class Architecture`) sees no accelerator, so CUDA is never initialised;
it answers in JSON on a pipe of its own, since a plugin may print what it likes. The parent waits `import_timeout_s()`
seconds, then kills the child's whole process group.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Literal

from .alias import Alias
from .conformance import ModelInfo, capabilities, require
from .errors import BestiaryError, BrokenPlugin, InvalidModel, UsageError
from .importing import cause, load_object

if TYPE_CHECKING:
    import subprocess  # at run time only where a child is started: listing kept answers must be quick

TIMEOUT_S = 30.0
TIMEOUT_VARIABLE = "BESTIARY_IMPORT_TIMEOUT"
_ANSWER_BYTES = 32768  # below a pipe's capacity, so that the child never waits for us
_LONGEST_S = 86400
_OUTPUT_CHARS = 600
_FILE_BYTES = 1 << 28

Outcome = Literal["ok", "failed", "invalid", "crashed", "hung"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What an import in a child process showed. `info` is there when `outcome` is "ok", otherwise `cause` is.

    alias_of: what an `Alias` names; empty for everything else.
    """

    outcome: Outcome
    info: ModelInfo | None = None
    cause: str = ""
    details: tuple[str, ...] = ()
    alias_of: str = ""

    def as_dict(self) -> dict[str, Any]:
        info = None if self.info is None else self.info.as_dict()
        answer = {"outcome": self.outcome, "info": info, "cause": self.cause, "details": list(self.details)}
        return answer | {"alias_of": self.alias_of}

    @classmethod
    def from_dict(cls, data: Any) -> ProbeResult:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on anything else."""
        outcome, info, why, details = data["outcome"], data["info"], data["cause"], data["details"]
        alias_of = data["alias_of"]
        if outcome not in ("ok", "failed", "invalid", "crashed", "hung") or (outcome == "ok") != (info is not None):
            raise ValueError("not a probe's answer")
        if (
            not isinstance(why, str)
            or not isinstance(alias_of, str)
            or not isinstance(details, list)
            or not all(isinstance(d, str) for d in details)
        ):
            raise TypeError("not a probe's answer")
        return cls(
            outcome=outcome,
            info=None if info is None else ModelInfo.from_dict(info),
            cause=why,
            details=tuple(details),
            alias_of=alias_of,
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


def probe(
    value: str, architecture: str, origin: str, *, timeout_s: float = TIMEOUT_S, only_import: bool = False
) -> ProbeResult:
    """Imports ``"module:Class"`` in a child process and says what came of it; never raises for the plugin's sake.

    only_import: whatever the value names is well if it can be imported; `info` then tells nothing.
    """
    import tempfile

    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output:
        try:
            child = _start(value, architecture, origin, writer, output, only_import)
        finally:
            os.close(writer)
        return outcome_of(child.pid, child.wait, reader, output, origin, timeout_s)


def outcome_of(
    pid: int, reap: Callable[[], int], reader: int, output: IO[bytes], origin: str, timeout_s: float
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
    if not ended:
        return ProbeResult(outcome="hung", cause=f"hung during import: no answer in {timeout_s:g} s (from {origin})")
    if answer is not None:
        return answer
    text = f"crashed during import ({exit_text(code)}) (from {origin})"
    return ProbeResult(outcome="crashed", cause=text, details=tail(output))


def _start(
    value: str, architecture: str, origin: str, writer: int, output: IO[bytes], only_import: bool
) -> subprocess.Popen[bytes]:
    import subprocess

    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "")
    path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path if isinstance(entry, str))
    command = [sys.executable, "-P", "-m", "bestiary.api.probe"]
    return subprocess.Popen(
        [*command, f"--fd={writer}", f"--origin={origin}", *["--only-import"] * only_import, "--", value, architecture],
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


def examine(value: str, architecture: str, origin: str, only_import: bool) -> ProbeResult:
    """In the child: import it, and say what it is."""
    try:
        found = load_object(value, origin)
        if only_import:
            info = ModelInfo(architecture=architecture, module=value, qualname="", categories=())
            return ProbeResult(outcome="ok", info=info, alias_of=found.architecture if isinstance(found, Alias) else "")
        cls = require(found, origin=origin)
        return ProbeResult(outcome="ok", info=capabilities(cls, architecture))
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

    parser = argparse.ArgumentParser(description="Imports one model class and reports what it can do, as JSON.")
    parser.add_argument("--fd", type=int, default=1)
    parser.add_argument("--origin", default="the command line")
    parser.add_argument("--only-import", action="store_true")
    parser.add_argument("value", metavar="module:Class")
    parser.add_argument("architecture")
    options = parser.parse_args(arguments)
    limit_resources()
    if options.fd > 2:
        os.set_inheritable(options.fd, False)
    result = examine(options.value, options.architecture, options.origin, options.only_import)
    answer(options.fd, result)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
