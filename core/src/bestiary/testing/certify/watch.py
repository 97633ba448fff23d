"""Running the child: an environment of its own, a limit of time, and its events as an `Outcome`.

The child sees the distribution that is certified, core, and what is installed in this environment; nothing of the
caller's variables but those in `_KEPT`, a home and a working directory that are empty, and no network for the hub.
"""

from __future__ import annotations

import json
import os
import selectors
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import bestiary
from bestiary.api import choices
from bestiary.api.errors import UsageError
from bestiary.api.probe import exit_text, kill_group, tail

from .target import Subject

Status = Literal["passed", "failed", "given_up", "skipped", "not_run"]

_KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT")
_KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_")
_LINE_BYTES = 1 << 22
_GRACE_S = 5.0
_LOOK_S = 1.0


@dataclass(slots=True)
class CheckResult:
    """One check of one contract; `variant` is empty where a check has none."""

    contract: str
    check: str
    variant: str
    status: Status = "not_run"
    seconds: float = 0.0
    message: str = ""

    @property
    def name(self) -> str:
        return f"{self.check}[{self.variant}]" if self.variant else self.check


@dataclass(slots=True)
class Found:
    """One contract as it was collected."""

    contract: str
    architecture: str
    configured: bool


@dataclass(slots=True)
class Outcome:
    """What the child reported. `problems` are what kept checks from being made; `ended` is why it did not finish."""

    contracts: list[Found] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    claims: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    table: str | None = None
    ended: str | None = None
    running: CheckResult | None = None
    importing: str = ""
    seconds: float = 0.0

    def of(self, contract: str) -> list[CheckResult]:
        return [one for one in self.checks if one.contract == contract]

    def take(self, event: dict[str, Any]) -> None:
        """Note one event."""
        match event["event"]:
            case "importing":
                self.importing = event["contract"]
            case "problem":
                self.problems.append(f"{event['contract'] or 'pytest'}: {event['message']}")
            case "unknown":
                raise UsageError(
                    f"no contract has such a check: {', '.join(event['names'])}",
                    field="--check",
                    limit=f"one of {', '.join(event['known'])}",
                )
            case "found":
                self.importing = ""
                self.contracts.append(Found(event["contract"], event["architecture"], event["configured"]))
                self.checks += [CheckResult(event["contract"], check, variant) for check, variant in event["checks"]]
            case "start":
                self.running = self._check(event)
            case "end":
                result = self._check(event)
                result.status, result.seconds, result.message = event["status"], event["seconds"], event["message"]
                self.running = None
            case "claims":
                self.claims[event["architecture"]] = event["claims"]
            case "table":
                self.table = event["text"]

    def _check(self, event: dict[str, Any]) -> CheckResult:
        wanted = event["contract"], event["check"], event["variant"]
        return next(one for one in self.checks if (one.contract, one.check, one.variant) == wanted)

    def end(self, why: str, output: Sequence[str]) -> None:
        """The child is gone before its time: whoever was running is the cause."""
        shown = "\n".join([why, *output])
        self.ended = why
        if self.running is not None:
            self.running.status, self.running.message = "failed", shown
        else:
            where = f" while {self.importing} was imported" if self.importing else ""
            self.problems.append(f"the checks ended early{where}: {shown}")


def plan(subject: Subject, checks: Sequence[str]) -> dict[str, Any]:
    """The child's orders, as `child.py` reads them. checks: the only ones to make; none: all."""
    return {
        "contracts": subject.contracts,
        "architectures": subject.architectures,
        "files": [str(path) for path in subject.test_files()],
        "checks": list(checks),
    }


def run(
    subject: Subject, workspace: Path, *, checks: Sequence[str], timeout_s: float, on_change: Callable[[Outcome], None]
) -> Outcome:
    """Make the checks. on_change: called after every event.

    Raises:
        UsageError: no contract has a check that was asked for.
    """
    home, desk = workspace / "home", workspace / "desk"
    home.mkdir()
    desk.mkdir()
    orders = workspace / "plan.json"
    orders.write_text(json.dumps(plan(subject, checks)), encoding="utf-8")
    outcome, began = Outcome(), time.monotonic()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output, os.fdopen(reader, "rb", buffering=0) as events:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "bestiary.testing.certify.child", str(writer), str(orders)],
                env=environment(subject, home), cwd=desk, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=[writer], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writer)
        done: bool | None = None
        try:
            done = _follow(events, outcome, began + timeout_s, on_change)
        finally:
            code = _end(child, grace_s=0 if done is None else _GRACE_S)
        if done is None:
            outcome.end(f"no end after {timeout_s:g} s", tail(output))
        elif not done:
            outcome.end(f"the process ended by itself ({exit_text(code)})", tail(output))
    outcome.seconds = time.monotonic() - began
    on_change(outcome)
    return outcome


def _end(child: subprocess.Popen[bytes], *, grace_s: float) -> int:
    """The exit code of a child that may take `grace_s` to end; then it and all that it has started are killed."""
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    kill_group(child.pid)
    return child.wait()


def _follow(events: IO[bytes], outcome: Outcome, deadline: float, on_change: Callable[[Outcome], None]) -> bool | None:
    """Take events until the last: True; until the pipe closes without it: False; until the deadline: None."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(min(left, _LOOK_S)):
                continue
            data = events.read(1 << 16)
            if not data or len(buffer) > _LINE_BYTES:
                return False
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "done":
                    return True
                outcome.take(event)
                on_change(outcome)
    return None


def environment(subject: Subject, home: Path) -> dict[str, str]:
    """The child's variables, all of them."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    chosen = ",".join(f"{name}={subject.distribution.name}" for name in subject.architectures)
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(_places(subject))),
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        choices.ENVIRONMENT: chosen,
    }


def _places(subject: Subject) -> Iterator[str]:
    """What comes before this environment's own packages: the distribution, core, and the user's packages if in use."""
    if subject.overlay is not None:
        yield str(subject.overlay)
    yield str(Path(bestiary.__file__).resolve().parents[1])
    yield subject.distribution.root
    user = site.getusersitepackages()
    if site.ENABLE_USER_SITE and user in sys.path:
        yield user
