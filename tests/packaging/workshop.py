"""Building what is in this repository, and making an environment that has nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = [ROOT / "core", *(path for path in PLUGINS if COMPILER or not (path / "native").is_dir())]
"""What can be built here: native code needs a compiler."""
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


QUICKLY = {**os.environ, "SKBUILD_CMAKE_BUILD_TYPE": "Plain"}
"""Native code is compiled as fast as can be, by a build type without options: scripts/test installs another."""


def build(folder: Path, target: Path, *options: str, **environment: str) -> None:
    command = (sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", target, folder)
    run(*command, env=QUICKLY | environment)


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


def certify(folder: Path, cache: Path, *options: str) -> tuple[int, Any]:
    """What `bestiary certify` answers: exit code and certificate."""
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
