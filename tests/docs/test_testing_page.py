"""The page about tests lists every file that has something in the full tier, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "testing.md"
ROW = re.compile(r"^\| (`\S+\.py`.*?) \|", re.MULTILINE)


def test_every_file_of_the_full_tier_is_in_the_table() -> None:
    marks = ("mark." + "full", "import " + "sizes", "support." + "times")  # the latter two hold marked cases
    marked = {
        path.relative_to(ROOT).as_posix()
        for folder in ("core/tests", "plugins", "tests")
        for path in (ROOT / folder).rglob("test_*.py")
        if any(mark in path.read_text(encoding="utf-8") for mark in marks)
    }
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert {name for row in rows for name in re.findall(r"`(\S+\.py)`", row)} == marked
