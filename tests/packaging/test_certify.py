"""Every plugin of this repository is certified from its folder, by way of a wheel.

Each plugin's own tests make every check on every change, from its source, and the worked example is certified wholly
this way. So on every change it is asked of each plugin what its wheel could lack: a file, an entry point, the README's
table. By hand (`-m full`) every check is made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, certify, require_passed

PLUGINS = [folder for folder in FOLDERS if "vllm_models" in (folder / "pyproject.toml").read_text("utf-8")]
FIRST = ("found", "members", "weights_complete", "readme")


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_the_wheel_has_what_the_plugin_promises(folder: Path, tmp_path: Path) -> None:
    code, found = certify(folder, tmp_path, *(word for name in FIRST for word in ("--check", name)))
    require_passed(code, found, "partial")
    assert found["readme"]["state"] == "current"
    assert {check["check"] for row in found["architectures"] for check in row["checks"]} == set(FIRST)


@pytest.mark.full
@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_certified(folder: Path, tmp_path: Path) -> None:
    code, found = certify(folder, tmp_path)
    require_passed(code, found, "certified")
    assert found["readme"]["state"] == "current"
