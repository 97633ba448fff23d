"""Folders of tiny installed distributions, and nothing of them left behind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestiary.testing.fake_site import Site


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing that a test imports from its folder outlives it; the user's own settings do not reach it."""
    before = set(sys.modules)
    for name in ("BESTIARY_PLUGINS", "BESTIARY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None) -> Site:
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.root))
    return made


@pytest.fixture
def two_sites(tmp_path: Path, clean_imports: None) -> tuple[Site, Site]:
    """Two folders; the test puts them on `sys.path` in whichever order."""
    return Site(tmp_path / "one"), Site(tmp_path / "two")
