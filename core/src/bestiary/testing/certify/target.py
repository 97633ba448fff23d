"""What the command line names, as one installed distribution: a `Subject`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import importlib_metadata

from bestiary.api import distributions
from bestiary.api.distributions import Distribution
from bestiary.api.errors import BadTarget, BrokenPlugin, DuplicateArchitecture
from bestiary.api.importing import split
from bestiary.api.registry import ModelRegistry
from bestiary.api.version import incompatibility

from . import wheel

Kind = Literal["distribution", "architecture", "wheel", "folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be certified.

    Attributes:
        target: as it was given. overlay: the folder that holds a distribution which is not installed.
        only: the one architecture that was asked for. folder: the project, where the target is one.
    """

    target: str
    kind: Kind
    distribution: Distribution
    overlay: Path | None = None
    only: str | None = None
    folder: Path | None = None

    @property
    def registered(self) -> dict[str, str]:
        """All that the distribution registers: architecture → ``module:Class``, or an alias's ``module:OBJECT``."""
        groups = (distributions.MODELS, distributions.ALIASES)
        return {entry.name: entry.value for group in groups for entry in self.distribution.group(group)}

    @property
    def architectures(self) -> dict[str, str]:
        """Those of them that are to be certified."""
        found = self.registered
        return found if self.only is None else {self.only: found[self.only]}

    @property
    def contracts(self) -> dict[str, str]:
        """Architecture → ``module:TestClass``, as the distribution declares them."""
        found = {entry.name: entry.value for entry in self.distribution.group(distributions.CONTRACTS)}
        if self.only is None:
            return found
        name = self.only if self.only in found else self.second_names(found).get(self.only)
        return {} if name is None else {name: found[name]}

    def second_names(self, covered: Mapping[str, object]) -> dict[str, str]:
        """Architectures that are another name of the class of one that is `covered` → that one."""
        values = self.registered
        first = {values[name]: name for name in sorted(covered, reverse=True) if name in values}
        return {name: first[value] for name, value in values.items() if name not in covered and value in first}

    def test_files(self) -> tuple[Path, ...]:
        """Of a project that declares no contracts: the test files that speak of some."""
        if self.folder is None or self.contracts:
            return ()
        return tuple(_speaking_of_contracts(self.folder / "tests"))


def resolve(target: str, workspace: Path, *, timeout_s: float, say: Callable[[str], None]) -> Subject:
    """The subject that `target` names: a project folder, a wheel, an installed distribution, or an architecture.

    Args:
        workspace: an empty folder for what has to be built and unpacked.

    Raises:
        BadTarget: nothing of this name, or nothing that can be laid out. PluginError: it is there, and is refused.
    """
    path = Path(target)
    if path.is_dir() and ((path / "pyproject.toml").exists() or os.sep in target or target in (os.curdir, os.pardir)):
        subject = _from_folder(target, path, workspace, timeout_s, say)
    elif path.suffix == ".whl" and path.is_file():
        subject = _from_wheel(target, path, workspace)
    else:
        subject = _installed(target)
    _refuse_unfit(subject)
    return subject


def _from_folder(target: str, path: Path, workspace: Path, timeout_s: float, say: Callable[[str], None]) -> Subject:
    wheel.project(path)
    (workspace / "wheel").mkdir()
    built = wheel.build(path, workspace / "wheel", timeout_s=timeout_s, say=say)
    overlay = _overlay(workspace)
    return Subject(
        target=target, kind="folder", distribution=wheel.unpack(built, overlay), overlay=overlay, folder=path.resolve()
    )


def _from_wheel(target: str, path: Path, workspace: Path) -> Subject:
    overlay = _overlay(workspace)
    return Subject(target=target, kind="wheel", distribution=wheel.unpack(path, overlay), overlay=overlay)


def _overlay(workspace: Path) -> Path:
    overlay = workspace / "overlay"
    overlay.mkdir()
    return overlay


def _installed(target: str) -> Subject:
    installation = ModelRegistry.installation
    name = distributions.normalise(target)
    for distribution in installation.plugins:
        if distribution.name == name:
            return Subject(target=target, kind="distribution", distribution=distribution)
    for skipped in installation.malformed:
        if distributions.normalise(skipped.name).startswith(name):
            raise BrokenPlugin(f"the metadata of {skipped.name} are malformed: {skipped.reason}", value=skipped.path)
    claims = ModelRegistry.claims().get(target, ())
    claimants = [claim.distribution for claim in claims if claim.distribution is not None]
    if len(claimants) > 1:
        raise DuplicateArchitecture(
            f"{len(claimants)} distributions claim {target}",
            field=target,
            details=[f"{owner} at {owner.path}" for owner in claimants],
            fix=f"name one of them: bestiary certify {claimants[0].name}",
        )
    if claimants:
        return Subject(target=target, kind="architecture", distribution=claimants[0], only=target)
    raise _nothing_of_this_name(target, name, installation)


def _nothing_of_this_name(target: str, name: str, installation: distributions.Installation) -> BadTarget:
    if name in installation.versions:
        why = f"{name} {installation.versions[name]} is installed, and offers Bestiary nothing"
    elif os.path.isfile(target):
        why = "this file is no wheel"
    elif os.path.isdir(target):
        why = "this folder has no pyproject.toml, and nothing of this name is installed"
    elif os.sep in target or target.endswith(".whl"):
        why = "no such file or folder"
    else:
        why = "no folder, wheel, installed distribution or architecture has this name"
    known = [one.name for one in installation.plugins]
    spelled = {each.casefold(): each for each in (*known, *ModelRegistry.claims())}
    near = difflib.get_close_matches(target.casefold(), spelled, 1, 0.8)
    return BadTarget(
        why,
        field="TARGET",
        value=target,
        details=[f"installed: {', '.join(known) or 'no plugin'}"],
        fix=f"did you mean {spelled[near[0]]}?" if near else None,
    )


def _refuse_unfit(subject: Subject) -> None:
    """What an installer, or core, would refuse before anything is imported."""
    distribution = subject.distribution
    if distribution.in_archive:
        raise BadTarget("a distribution in an archive cannot be certified", value=distribution.path)
    refused = incompatibility(distribution.name, distribution.version, distribution.api_versions)
    if refused is not None:
        raise refused
    if not subject.architectures:
        raise BadTarget(f"{distribution} registers no architecture", limit=f"entry points in {distributions.MODELS}")
    strangers = sorted(set(subject.contracts) - set(subject.registered))
    if strangers:
        raise BrokenPlugin(
            f"{distribution} has contracts for architectures that it does not register: {', '.join(strangers)}",
            field=distributions.CONTRACTS,
            limit=f"names of {distributions.MODELS}: {', '.join(subject.registered)}",
        )
    malformed = {name: value for name, value in subject.contracts.items() if not (split(value) or ("", ""))[1]}
    if malformed:
        raise BrokenPlugin(
            f"{distribution} has contracts that are not module:Class",
            field=distributions.CONTRACTS,
            details=[f"{name} = {value}" for name, value in malformed.items()],
        )
    unmet = list(_unmet_requirements(Path(distribution.path)))
    if unmet and subject.overlay is not None:
        raise BadTarget(
            f"{distribution} needs what this environment does not have",
            details=unmet,
            fix="pip install " + " ".join(f"'{line.partition(' (')[0]}'" for line in unmet),
        )


def _unmet_requirements(dist_info: Path) -> Iterator[str]:
    from packaging.requirements import Requirement

    for line in importlib_metadata.PathDistribution(dist_info).requires or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _installed_version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name}{wanted.specifier} ({found or 'not installed'})"


def _installed_version(name: str) -> str | None:
    """Core's own version is asked of core: it may run from its sources."""
    from bestiary import __version__

    if distributions.normalise(name) == "bestiary":
        return __version__
    try:
        return importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
        return None


def _speaking_of_contracts(folder: Path) -> Iterator[Path]:
    for path in sorted({*folder.rglob("test_*.py"), *folder.rglob("*_test.py")}):
        if "contract" in path.read_text(encoding="utf-8", errors="replace").lower():
            yield path
