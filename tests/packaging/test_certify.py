"""Every plugin of this repository is certified from its folder: by way of a wheel, by every check."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, certify, require_passed

PLUGINS = FOLDERS[1:]  # core comes first


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_certified(folder: Path, tmp_path: Path) -> None:
    code, found = certify(folder, tmp_path)
    require_passed(code, found, "certified")
    assert found["readme"]["state"] == "current"
