"""Every package is built once a run, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workshop import FOLDERS, NOT_SOURCE, Built, build, make_environment


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Distribution name to what was built from its folder, outside the repository."""
    ours = tmp_path_factory.getbasetemp()
    out = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "built"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [built_from(folder, out) for folder in FOLDERS]
    return {one.project["name"]: one for one in found}


def built_from(folder: Path, out: Path) -> Built:
    """What was built of `folder`, by another process or now."""
    done = out / f"{folder.name}-dist"
    if not done.exists():
        copy, half = out / folder.name, out / f"{folder.name}-half"
        shutil.copytree(folder, copy, ignore=NOT_SOURCE, dirs_exist_ok=True)
        build(copy, half)
        half.rename(done)
    (sdist,), (wheel,) = done.glob("*.tar.gz"), done.glob("*.whl")
    return Built(folder, sdist, wheel)


@pytest.fixture
def empty_environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path)
