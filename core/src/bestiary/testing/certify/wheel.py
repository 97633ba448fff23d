"""Wheels: built from a project folder, and unpacked so that what is looked at is what would be published.

A wheel is a zip archive of anybody's making: names are checked before anything is written, and sizes while it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from bestiary.api import discovery, distributions, record
from bestiary.api.distributions import Distribution
from bestiary.api.errors import BadTarget

MAX_FILES = 20_000
MAX_BYTES = 1 << 30
_OUTPUT_LINES = 12
_INSTALLED_PARTS = ("purelib", "platlib")


def build(folder: Path, target: Path, *, timeout_s: float, say: Callable[[str], None]) -> Path:
    """The wheel that pip builds from `folder`, in `target`. Without isolation where everything that the build needs is
    installed; otherwise pip fetches it, and a line says so.

    Raises:
        BadTarget: pip is missing, fails or takes too long; its last lines are in the error.
    """
    if importlib.util.find_spec("pip") is None:
        raise BadTarget(
            "a folder is built with pip, which this environment lacks",
            value=str(folder),
            fix=f"{sys.executable} -m ensurepip, or build the wheel by other means and certify that",
        )
    missing = _missing_build_requirements(folder)
    if missing:
        say(f"building in isolation: not installed here: {', '.join(missing)}")
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--no-input", "--wheel-dir", str(target)]
    command = [sys.executable, "-m", "pip", "wheel", *options, *([] if missing else ["--no-build-isolation"])]
    try:
        done = subprocess.run(
            [*command, str(folder.resolve())],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadTarget(f"pip has not built a wheel in {timeout_s:g} s", value=str(folder)) from None
    wheels = sorted(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise BadTarget(
            "no wheel can be built from this folder",
            value=str(folder),
            details=lines[-_OUTPUT_LINES:],
            fix=f"pip wheel --no-deps {folder}",
        )
    return wheels[0]


def project(folder: Path) -> dict[str, Any]:
    """The folder's pyproject.toml."""
    path = folder / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadTarget("this folder has no pyproject.toml", value=str(folder), fix="bestiary new NAME") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadTarget(f"pyproject.toml cannot be read: {error}", value=str(folder)) from error


def _missing_build_requirements(folder: Path) -> list[str]:
    """What pip would fetch before it builds; the backend's own wishes beyond pyproject.toml are not known here."""
    import importlib_metadata
    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    for line in project(folder).get("build-system", {}).get("requires", ["setuptools"]):
        try:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate():
                continue
            if not wanted.specifier.contains(importlib_metadata.version(wanted.name), prereleases=True):
                missing.append(line)
        except importlib_metadata.PackageNotFoundError:
            missing.append(line)
        except (InvalidRequirement, TypeError) as error:
            raise BadTarget(f"build-system.requires is malformed: {error}", value=str(folder)) from error
    return missing


def unpack(wheel: Path, target: Path) -> Distribution:
    """The wheel's distribution, laid out in the empty folder `target` as an installer would.

    Raises:
        BadTarget: it is no wheel, or not for this Python and platform; a path leads out of the folder; it is too large;
            its RECORD does not fit its files; its metadata are malformed.
    """
    name, version = _identity(wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _checked(archive, wheel, f"{name.replace('-', '_')}-{version}.dist-info")
            _extract(archive, members, target, wheel)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise BadTarget(f"this wheel cannot be unpacked: {error}", value=str(wheel)) from error
    found = discovery.scan([str(target)])
    if found.malformed:
        raise BadTarget(f"the wheel's metadata are malformed: {found.malformed[0].reason}", value=str(wheel))
    if not found.plugins:
        raise BadTarget(
            f"{name} offers nothing to Bestiary",
            value=str(wheel),
            limit=f"entry points in the group {distributions.MODELS}",
        )
    (distribution,) = found.plugins
    check = record.verify(distribution)
    if check.status != "ok":
        raise BadTarget(
            f"the wheel's RECORD is {'missing' if check.status == 'absent' else 'not that of its files'}",
            value=str(wheel),
            details=check.changed,
        )
    _merge_data_folders(target)
    return distribution


def _identity(wheel: Path) -> tuple[str, str]:
    """Normalised name and version, from the file's name, which must fit this interpreter."""
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, tags = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise BadTarget(f"the file's name is not a wheel's: {error}", value=str(wheel)) from error
    if tags.isdisjoint(sys_tags()):
        raise BadTarget(
            "this wheel is for another Python or platform", value=", ".join(sorted(map(str, tags))), field=wheel.name
        )
    return str(name), str(version)


def _checked(archive: zipfile.ZipFile, wheel: Path, dist_info: str) -> list[zipfile.ZipInfo]:
    """The archive's files; nothing has been written yet."""

    def refuse(what: str, name: str) -> BadTarget:
        return BadTarget(f"this wheel is refused: {what}", field="file name", value=name)

    members = [one for one in archive.infolist() if not one.is_dir()]
    if len(members) > MAX_FILES:
        raise BadTarget(f"this wheel is refused: it has {len(members)} files", limit=f"at most {MAX_FILES}")
    seen: set[str] = set()
    infos: set[str] = set()
    for member in members:
        name = member.filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0] or not name.isprintable():
            raise refuse("a path leads out of it", name)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refuse("an entry is no regular file", name)
        if str(path) in seen:
            raise refuse("an entry stands twice", name)
        seen.add(str(path))
        if path.parts[0].endswith((".dist-info", ".egg-info")):
            infos.add(path.parts[0])
    if {distributions.normalise(one) for one in infos} != {distributions.normalise(dist_info)}:
        raise BadTarget(
            "this wheel's metadata folder does not fit its name",
            field=wheel.name, value=", ".join(sorted(infos)) or "(none)", limit=dist_info,
        )  # fmt: skip
    return members


def _extract(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], target: Path, wheel: Path) -> None:
    """Write the files; what an entry says of its own size is not believed."""
    left = MAX_BYTES
    for member in members:
        path = target / PurePosixPath(member.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, open(path, "xb") as file:
            while chunk := source.read(1 << 20):
                left -= len(chunk)
                if left < 0:
                    raise BadTarget("this wheel is too large", value=wheel.name, limit=f"{MAX_BYTES} bytes unpacked")
                file.write(chunk)


def _merge_data_folders(target: Path) -> None:
    """``NAME.data/purelib/x`` becomes ``x``; scripts, headers and data are no part of what is certified."""
    for part in [
        path for folder in target.glob("*.data") for name in _INSTALLED_PARTS if (path := folder / name).exists()
    ]:
        for source, _, files in os.walk(part):
            place = target / Path(source).relative_to(part)
            place.mkdir(parents=True, exist_ok=True)
            for name in files:
                if (place / name).exists():
                    raise BadTarget("two files of this wheel would be installed in one place", value=name)
                shutil.move(Path(source) / name, place / name)
