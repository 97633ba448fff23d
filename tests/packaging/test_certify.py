"""Every plugin of this repository is certified from its folder: by way of a wheel, in a clean process.

The contracts themselves run in each plugin's own tests, on its sources. What a wheel can change is what is looked at
here: files that are missing, entry points, imports, contracts that are not declared, the README.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, certify, require_passed

PLUGINS = FOLDERS[1:]  # core comes first
CHECKS = ("found", "clean_import", "members", "weights_complete", "readme")


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_what_would_be_published_is_whole_and_declares_its_contracts(folder: Path, tmp_path: Path) -> None:
    options = [part for name in CHECKS for part in ("--check", name)]
    code, found = certify(folder, tmp_path, *options)
    require_passed(code, found, "partial")
    assert found["readme"]["state"] == "current"


@pytest.mark.full
@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_certified(folder: Path, tmp_path: Path) -> None:
    require_passed(*certify(folder, tmp_path), "certified")
