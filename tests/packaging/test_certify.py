"""Every plugin of this repository is certified from its folder: by way of a wheel, in a clean process.

The contracts themselves run in each plugin's own tests, on its sources. What a wheel can change is what is looked at
here: files that are missing, entry points, imports, contracts that are not declared, the README.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
CHECKS = ("found", "clean_import", "members", "weights_complete", "readme")


def certify(folder: Path, cache: Path, *options: str) -> tuple[int, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BESTIARY_")}
    environment |= {"BESTIARY_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "bestiary", "certify", str(folder), "--json", *options]
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def require_passed(code: int, found: Any, verdict: str) -> None:
    failed = [
        f"{row['architecture']}: {check['check']}: {check['message']}"
        for row in found.get("architectures", [found])
        for check in row.get("checks", [])
        if check["status"] not in ("passed", "given_up", "skipped")
    ]
    assert [*failed, *found.get("problems", []), *found.get("unchecked", {}).items()] == [], found
    assert (code, found["verdict"]) == (0, verdict)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_would_be_published_is_whole_and_declares_its_contracts(folder: Path, tmp_path: Path) -> None:
    options = [part for name in CHECKS for part in ("--check", name)]
    code, found = certify(folder, tmp_path, *options)
    require_passed(code, found, "partial")
    assert found["readme"]["state"] == "current"


@pytest.mark.full
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_is_certified(folder: Path, tmp_path: Path) -> None:
    require_passed(*certify(folder, tmp_path), "certified")
