"""Which browser is driven; and that tests without one are seen to be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import chromium

ROOT = Path(__file__).resolve().parents[2]


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    browser = tmp_path / "google-chrome"
    browser.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BESTIARY_BROWSER", raising=False)
    assert chromium.find() == str(browser)
    for chosen, found in [("none", None), (str(browser), str(browser)), ("", str(browser))]:
        monkeypatch.setenv("BESTIARY_BROWSER", chosen)
        assert chromium.find() == found


def test_skipped_tests_are_announced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/web/test_keyboard.py", "-k", "arrows"]
    environment = os.environ | {"BESTIARY_BROWSER": "none"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "SKIPPED. scripts/browser installs one" in done.stdout
    assert "1 skipped" in done.stdout
