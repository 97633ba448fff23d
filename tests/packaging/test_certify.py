"""Every plugin of this repository is certified from its folder, by way of a wheel.

Each plugin's own tests make every check on every change, from its source. What only the wheel shows, a file or an entry
point that it lacks, the first checks show already; so the smallest plugin is certified by all of them, and by hand
(`-m full`) every one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, ROOT, certify, require_passed

SMALLEST = ROOT / "plugins/bloom_plugin"
OTHERS = [folder for folder in FOLDERS[1:] if folder != SMALLEST]  # core comes first
FIRST = ("found", "members", "weights_complete", "readme")


def by_hand(folder: Path) -> object:
    return pytest.param(folder, id=folder.name, marks=pytest.mark.full)


@pytest.mark.parametrize("folder", [*map(by_hand, OTHERS), SMALLEST], ids=lambda folder: folder.name)
def test_a_plugin_is_certified(folder: Path, tmp_path: Path) -> None:
    code, found = certify(folder, tmp_path)
    require_passed(code, found, "certified")
    assert found["readme"]["state"] == "current"


@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_the_wheel_of_another_has_what_it_promises(folder: Path, tmp_path: Path) -> None:
    code, found = certify(folder, tmp_path, *(word for name in FIRST for word in ("--check", name)))
    require_passed(code, found, "partial")
    assert found["readme"]["state"] == "current"
    assert {check["check"] for row in found["architectures"] for check in row["checks"]} == set(FIRST)
