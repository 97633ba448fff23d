"""Every package is built once a session."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, NOT_SOURCE, Built, build, make_environment


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Distribution name to what was built from its folder, outside the repository."""
    out = tmp_path_factory.mktemp("built")
    results = {}
    for folder in FOLDERS:
        copy, target = out / folder.name, out / f"{folder.name}-dist"
        shutil.copytree(folder, copy, ignore=NOT_SOURCE)
        build(copy, target)
        (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
        one = Built(folder, sdist, wheel)
        results[one.project["name"]] = one
    return results


@pytest.fixture
def empty_environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path)
