"""The support table of a project that nobody has built or installed yet."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bestiary.api import discovery
from bestiary.api.errors import BrokenPlugin

from . import watch, wheel
from .target import Subject

TIMEOUT_S = 120.0


def table_of(folder: Path) -> str:
    """What the contracts of the project in `folder` check, as its README shows it.

    Its packages must lie in `src`. They are laid out as if installed, in a folder of their own, without a build.

    Raises:
        BrokenPlugin: they cannot be imported.
    """
    with tempfile.TemporaryDirectory(prefix="bestiary-project-") as name:
        workspace = Path(name)
        subject = _laid_out(folder, workspace / "overlay")
        outcome = watch.run(subject, workspace, checks=["found"], timeout_s=TIMEOUT_S, on_change=lambda outcome: None)
    if outcome.table is None:
        why = [*outcome.problems, *(one.message for one in outcome.checks if one.status == "failed")]
        raise BrokenPlugin("the project's contracts cannot be imported", value=str(folder), details=why)
    return outcome.table


def _laid_out(folder: Path, overlay: Path) -> Subject:
    project = wheel.project(folder)["project"]
    shutil.copytree(folder / "src", overlay)
    info = overlay / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(named, encoding="utf-8")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    (distribution,) = discovery.scan([str(overlay)]).plugins
    return Subject(target=str(folder), kind="folder", distribution=distribution, overlay=overlay)
