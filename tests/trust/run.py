"""Runs a programme of the trust programme, and writes down what it found: `scripts/trust`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .cases import CLIENTS, PROGRAMMES, ROOT
from .record import Found, document, write

TIERS = {"fast": [], "full": ["-m", "not soak and not gpu"], "soak": ["-m", "not gpu"]}
"""Marks for pytest: each tier has the tests of those before it."""
_SOME_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    names = [*PROGRAMMES, "clients"]
    parser = argparse.ArgumentParser(prog="scripts/trust", epilog="Further arguments are pytest's.")
    parser.add_argument("programme", choices=[*names, "all"])
    parser.add_argument("--tier", choices=list(TIERS), default="fast")
    parser.add_argument("--record", action="store_true", help="write docs/reliability/DATE-PROGRAMME.json")
    chosen, further = parser.parse_known_args(arguments)
    os.chdir(ROOT)
    if chosen.programme == "all":
        return max(_in_its_own_process(name, chosen, further) for name in names)
    run = run_clients if chosen.programme == "clients" else run_programme
    code, record = run(chosen.programme, chosen.tier, further)
    return conclude(code, record, keep=chosen.record)


def run_programme(name: str, tier: str, further: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Pytest's exit status, and the record."""
    programme, started = PROGRAMMES[name], time.monotonic()
    found = Found(programme)
    code = pytest.main([*programme.arguments, *TIERS[tier], *further], plugins=[found])
    record = document(
        name, tier, command(name, tier, further), time.monotonic() - started, found.cases, tests=found.tests,
        failures=found.failures,
    )  # fmt: skip
    return int(code), record


def run_clients(name: str, tier: str, further: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """By scripts/clients, which keeps a record of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        marks = [] if tier == "fast" else ["-m", "full or not full"]
        done = subprocess.run(
            ["scripts/clients", *marks, *further], env=os.environ | {"BESTIARY_CLIENTS_RECORD": str(file)}, check=False
        )
        kept = json.loads(file.read_text("utf-8")) if file.exists() else {"cases": {}, "failed": {}, "figures": {}}
    suites = [suite for suite in CLIENTS.cases if suite in kept["cases"].keys() | kept["failed"].keys()]
    cases = {suite: _of_a_suite(kept, suite) for suite in suites}
    tests = {what: sum(case[what] for case in cases.values()) for what in ("passed", "failed")}
    parts = {what: kept[what] for what in ("versions", "node_versions") if what in kept}
    record = document(
        name, tier, command(name, tier, further), time.monotonic() - started, cases, tests=tests,
        failures=sorted(node for nodes in kept["failed"].values() for node in nodes), clients=parts,
    )  # fmt: skip
    return done.returncode, record


def _of_a_suite(kept: Mapping[str, Any], suite: str) -> dict[str, Any]:
    passed, failed = len(kept["cases"].get(suite, [])), len(kept["failed"].get(suite, []))
    return {"inputs": passed + failed, "passed": passed, "failed": failed, "figures": kept["figures"].get(suite, {})}


def command(name: str, tier: str, further: Sequence[str]) -> str:
    """What somebody types to have the same again."""
    return shlex.join(["scripts/trust", name, "--tier", tier, *further, "--record"])


def conclude(code: int, record: dict[str, Any], *, keep: bool) -> int:
    """Say what was found, and keep it where it was wanted and there is something; a run that pytest broke off says
    nothing of what it would have found."""
    tests = record["tests"]
    for id_, case in record["cases"].items():
        print(f"{id_:>16}  {case['inputs']:7} inputs  {case['passed']:4} passed  {case['failed']:3} failed")
    print(f"{record['programme']}: {tests['passed']} tests passed, {tests['failed']} failed; {record['inputs']} inputs")
    if not record["cases"] or code not in (0, _SOME_FAILED):
        print("nothing is recorded: nothing ran to the end", file=sys.stderr)
        return code or _SOME_FAILED
    if keep:
        print(write(record).relative_to(ROOT))
    return code


def _in_its_own_process(name: str, chosen: argparse.Namespace, further: Sequence[str]) -> int:
    keep = ["--record"] if chosen.record else []
    words = [sys.executable, "-m", "tests.trust.run", name, "--tier", chosen.tier, *keep, *further]
    return subprocess.run(words, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
