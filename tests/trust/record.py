"""What a run found, as a record: for each case what it was tried with and what became of it, and where it ran."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

from bestiary.bench.hardware import cpu_name

from .cases import ROOT, Programme

RECORDS = ROOT / "docs" / "reliability"
SCHEMA = 1
_PACKAGES = (
    "bestiary", "torch", "transformers", "tokenizers", "safetensors", "msgspec", "pydantic", "starlette", "uvicorn",
    "h11", "llguidance", "minijinja", "pytest", "hypothesis",
)  # fmt: skip


class Found:
    """A plugin of pytest that keeps what tests say with `case`, and what became of every test.

    A figure that is a whole number is a count, and counts are added up. Any other is a measurement, of which the least
    and the most are kept, from the tests that had the most inputs: they say more. A figure may hold others by name. A
    test that fails counts against every case that it named, said or not.
    """

    def __init__(self, programme: Programme) -> None:
        self._programme = programme
        self._seconds: dict[str, float] = {}
        self._outcomes: dict[str, str] = {}
        self._inputs: dict[str, int] = {}
        self.cases: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        node = report.nodeid
        self._seconds[node] = self._seconds.get(node, 0.0) + report.duration
        if report.when == "call" or not report.passed:
            worse = "failed" if self._outcomes.get(node) == "failed" else report.outcome
            self._outcomes[node] = worse
        if report.when == "teardown":
            self._keep(node, [case for name, case in report.user_properties if name == "case"])

    def _keep(self, node: str, said: list[dict[str, Any]]) -> None:
        outcome = self._outcomes.get(node, "failed")
        for id_ in sorted({case["id"] for case in said} | self._programme.named_by(node)):
            kept = self.cases.setdefault(
                id_, {"inputs": 0, "passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "figures": {}}
            )
            kept[outcome] += 1
            kept["seconds"] = round(kept["seconds"] + self._seconds[node], 2)
            own = [case for case in said if case["id"] == id_]
            kept["inputs"] += sum(case["inputs"] for case in own) if own else outcome != "skipped"
            for case in own:
                self._merge(kept["figures"], case["figures"], case["inputs"], id_)

    def _merge(self, kept: dict[str, Any], figures: Mapping[str, Any], inputs: int, where: str) -> None:
        for name, value in figures.items():
            place = f"{where} {name}"
            if isinstance(value, Mapping):
                self._merge(kept.setdefault(name, {}), {str(key): each for key, each in value.items()}, inputs, place)
            elif isinstance(value, float):
                known = kept.get(name, [value]) if inputs == self._inputs.get(place) else [value]
                if inputs >= self._inputs.get(place, 0):
                    self._inputs[place] = inputs
                    kept[name] = [float(f"{limit:.4g}") for limit in (min(*known, value), max(*known, value))]
            elif value is not None:
                kept[name] = kept.get(name, 0) + value

    @property
    def tests(self) -> dict[str, int]:
        outcomes = list(self._outcomes.values())
        return {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}

    @property
    def failures(self) -> list[str]:
        return [node for node, outcome in self._outcomes.items() if outcome == "failed"]


def document(
    name: str, tier: str, command: str, seconds: float, cases: Mapping[str, dict[str, Any]], **parts: Any
) -> dict[str, Any]:
    """The record of a run. No host, no path, no user."""
    return {
        "schema": SCHEMA, "programme": name, "tier": tier, "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command, "seconds": round(seconds), "environment": environment(), **parts,
        "inputs": sum(case["inputs"] for case in cases.values()),
        "cases": dict(sorted(cases.items(), key=lambda each: _order(each[0]))),
    }  # fmt: skip


def write(record: Mapping[str, Any], folder: Path = RECORDS) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{record['date']}-{record['programme']}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def environment() -> dict[str, Any]:
    """The commit, the machine, and the versions of what took part."""
    return {
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _commit() -> str | None:
    """The checkout's commit, marked where tracked files differ from it; None outside a checkout."""
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + (" and changes" if answers[1] else "")


def _order(id_: str) -> tuple[str, int]:
    """EX2 before EX10."""
    letters = id_.rstrip("0123456789")
    return letters, int(id_.removeprefix(letters) or 0)
