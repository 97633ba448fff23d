"""The page about reliability says what its records say, and of what there is no record that there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.trust.record import document, write

from . import reliability_page


def case(inputs: int, passed: int, failed: int = 0, **figures: Any) -> dict[str, Any]:
    return {"inputs": inputs, "passed": passed, "failed": failed, "skipped": 0, "seconds": 1.0, "figures": figures}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record of faults, and an older one that has failed."""
    good = {"F01": case(0, 1), "F02": case(1200, 3, seconds_to_error=[0.25, 0.5], deaths=7)}
    bad = {"F02": case(1, 0, failed=1)}
    for cases, date, failures in ((good, "2026-02-03", []), (bad, "2026-02-02", ["test_it"])):
        tests = {name: sum(each[name] for each in cases.values()) for name in ("passed", "failed", "skipped")}
        record = document("faults", "fast", "scripts/trust faults", 5, cases, tests=tests, failures=failures)
        write(record | {"date": date}, tmp_path)
    return tmp_path


def test_the_newest_record_is_shown(folder: Path) -> None:
    page = reliability_page.page(folder)
    assert "**2 kinds of fault (1,200): none of 4 tests failed.**" in page
    row = "| F02 | a rank of a divided model is killed | 1,200 | 3 | 0 | seconds to error 0.25 to 0.5; deaths 7 |"
    assert row in page
    assert "| F01 | the engine process is killed, or ended by a plugin | | 1 | 0 | |" in page
    assert "| F03 | the process that serves is killed | | | | not in this tier |" in page
    assert "2026-02-02" not in page and "test_it" not in page


def test_what_failed_is_said(folder: Path) -> None:
    (folder / "2026-02-03-faults.json").unlink()
    page = reliability_page.page(folder)
    assert "1 of 1 tests failed.**" in page
    assert "| **1** |" in page and "**Failed:** `test_it`." in page


def test_what_has_no_record_is_said(folder: Path) -> None:
    page = reliability_page.page(folder)
    assert "No run is recorded: `scripts/trust load --tier full --record`." in page
    for path in folder.glob("*.json"):
        path.unlink()
    assert "No run is recorded yet." in reliability_page.page(folder)


def test_what_a_request_leaves_is_in_the_headline(folder: Path) -> None:
    slopes = {"server_kib_per_request": [0.01, 0.0312], "engine_kib_per_request": [-0.2, -0.1]}
    tests = {"passed": 1, "failed": 0, "skipped": 0}
    write(document("leaks", "fast", "", 5, {"LK1": case(20_000, 1, **slopes)}, tests=tests, failures=[]), folder)
    assert "20,000 requests watched for leaks (at most 0.031 KiB kept of each)" in reliability_page.page(folder)
