"""Run the tests of hostile inputs, and write down what they found:

python tests/trust/hostile/record.py --record [-m full]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("bestiary", "torch", "starlette", "uvicorn", "h11", "llguidance")
HERE = Path(__file__).parent
RECORDS = HERE.parents[2] / "docs/reliability"


class Cases:
    """A plugin of pytest that keeps what tests say with `case`, and what became of every test."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.outcomes = {"passed": 0, "failed": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.outcomes["failed" if report.failed else "passed"] += 1
        if report.when != "call":
            return
        for name, case in report.user_properties:
            if name == "case":
                kept = self.found.setdefault(case["id"], {"inputs": 0})
                kept["inputs"] += case["inputs"]
                kept.update(case["figures"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write docs/reliability/DATE-hostile.json")
    parser.add_argument("-m", dest="tier", choices=["full"], help="the longer runs too")
    chosen = parser.parse_args()
    cases, started = Cases(), time.monotonic()
    marks = ["-m", "full or not full"] if chosen.tier else []
    code = pytest.main([str(HERE), *marks], plugins=[cases])
    document = {
        "what": "hostile inputs", "tier": chosen.tier or "fast", "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - started), "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)), "versions": {name: version(name) for name in PACKAGES},
        "tests": cases.outcomes, "inputs": sum(case["inputs"] for id_, case in cases.found.items() if id_.isupper()),
        "cases": dict(sorted(cases.found.items())), "command": "python tests/trust/hostile/record.py --record",
    }  # fmt: skip
    if chosen.record:
        RECORDS.mkdir(exist_ok=True)
        path = RECORDS / f"{document['date']}-hostile.json"
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        print(path)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
