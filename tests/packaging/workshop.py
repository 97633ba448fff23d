"""Building what is in this repository, and making an environment that has nothing of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
CLEAN = {"PATH": "/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "dist", "build", ".*")


class Built(NamedTuple):
    folder: Path  # in the repository
    sdist: Path
    wheel: Path

    @property
    def project(self) -> dict:
        return tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))["project"]

    @property
    def package(self) -> Path:
        (package,) = (path.parent for path in self.folder.glob("src/*/__init__.py"))
        return package


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, target: Path, *options: str) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", target, folder)


def third_party(target: Path) -> Path:
    """A folder with links to everything installed here but our own packages: an environment that has torch already."""
    target.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        ours = path.name.startswith(("bestiary", "_bestiary", "_editable")) or path.suffix == ".pth"
        if not ours:
            (target / path.name).symlink_to(path)
    return target


def make_environment(folder: Path) -> Path:
    """The Python of a new environment that has the base packages, no pip, and nothing of ours."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "base.pth").write_text(f"{third_party(folder / 'base')}\n")
    return python


def installed(python: Path, *wheels: Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index", *wheels)
