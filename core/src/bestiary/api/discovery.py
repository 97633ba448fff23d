"""What is installed, from metadata alone: no plugin is imported, and no METADATA file of a bystander is opened.

The result equals `importlib_metadata.entry_points()` for the groups of interest: folders on `sys.path` in order, the
first of two distributions with one name wins. It is found by listing folders ourselves, for two reasons: importing
`importlib_metadata` and reading metadata through it costs several times the scan, and it skips in silence what is
malformed, which we report. Zip archives on `sys.path` go through `importlib_metadata`.

Name and version come from the folder's name (``llama_plugin-1.2.dist-info``), compared in normal form (PEP 503).
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MODELS, ALIASES, GGUF = "vllm_models", "bestiary_aliases", "bestiary_gguf"
HOOKS, API, CONTRACTS = "bestiary_hooks", "bestiary_api", "bestiary_contracts"
REGISTRARS, IMPORT_CONTEXTS, COMMANDS = "bestiary_registrars", "bestiary_import_contexts", "bestiary_commands"
GROUPS = (MODELS, ALIASES, GGUF, HOOKS, API, CONTRACTS, REGISTRARS, IMPORT_CONTEXTS, COMMANDS)

_MAX_ENTRY_POINTS = 1 << 20
_HEADER_BYTES = 8192
_METADATA_DIRS = (".dist-info", ".egg-info")


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One line of entry_points.txt: in `group`, `name` = `value`."""

    group: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution. `name` is normalised; `root` is the `sys.path` folder it was found in."""

    name: str
    version: str
    path: str
    root: str
    entry_points: tuple[EntryPoint, ...] = ()

    def group(self, group: str) -> tuple[EntryPoint, ...]:
        return tuple(entry for entry in self.entry_points if entry.group == group)

    @property
    def api_versions(self) -> tuple[str, ...]:
        """The core API versions it was written for, as it states them."""
        return tuple(entry.name for entry in self.group(API))

    @property
    def in_archive(self) -> bool:
        return self.path == self.root

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Metadata that was skipped, and why."""

    name: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Installation:
    """One look at `sys.path`: distributions with entry points of ours, what was skipped, and every version."""

    plugins: tuple[Distribution, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def providers(self, group: str) -> Iterator[tuple[EntryPoint, Distribution]]:
        for distribution in self.plugins:
            for entry in distribution.group(group):
                yield entry, distribution


class MalformedMetadata(ValueError):
    """Internal: turned into a `Malformed` row, never shown as an exception."""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def scan(paths: Iterable[str] | None = None) -> Installation:
    """Looks at every folder of `paths` (default: `sys.path`), in order.

    Where somebody names further groups to look at (``bestiary_registrars``, see `registrars.py`), it looks again.
    """
    roots = _unique(sys.path if paths is None else paths)
    found = _look(roots, GROUPS)
    further = {entry.name for entry, _ in found.providers(REGISTRARS)}.difference(GROUPS)
    return _look(roots, (*GROUPS, *sorted(further))) if further else found


def _look(roots: Sequence[str], groups: Sequence[str]) -> Installation:
    found: dict[str, Distribution] = {}
    malformed: list[Malformed] = []
    for root in roots:
        here: dict[str, Distribution] = {}
        for distribution in _in_root(root, groups, malformed):
            other = here.get(distribution.name)
            if other is not None:
                distribution, left = _newer(distribution, other)
                malformed.append(Malformed(left.name, left.path, f"left over beside {distribution}"))
            here[distribution.name] = distribution
        for name, distribution in here.items():
            other = found.setdefault(name, distribution)
            if other is not distribution and not _has_metadata(other) and _has_metadata(distribution):
                malformed.append(Malformed(other.name, other.path, f"METADATA is missing; {distribution} counts"))
                found[name] = distribution
    plugins = []
    for distribution in found.values():
        if distribution.entry_points:
            try:
                if not distribution.in_archive:
                    _check_metadata(distribution)
            except MalformedMetadata as error:
                malformed.append(Malformed(distribution.name, distribution.path, str(error)))
                continue
            if all(entry.group in (API, CONTRACTS) for entry in distribution.entry_points):
                stated, others = distribution.entry_points[0].group, ", ".join((MODELS, ALIASES, HOOKS))
                reason = f"states {stated} but offers nothing in {others} or {GGUF}: is a group's name misspelt?"
                malformed.append(Malformed(distribution.name, distribution.path, reason))
                continue
            plugins.append(distribution)
    return Installation(
        tuple(sorted(plugins, key=lambda one: one.name)),
        tuple(sorted(malformed, key=lambda one: one.path)),
        {name: distribution.version for name, distribution in found.items()},
    )


def _unique(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(os.path.realpath(path or os.getcwd()) for path in paths if isinstance(path, str)))


def _in_root(root: str, groups: Sequence[str], malformed: list[Malformed]) -> Iterator[Distribution]:
    try:
        names = sorted(os.listdir(root))
    except NotADirectoryError:
        yield from _in_archive(root, groups, malformed)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        malformed.append(Malformed(os.path.basename(root), root, f"cannot be listed: {error.strerror}"))
        return
    egg = root.endswith(".egg")
    for name in names:
        if not (name.endswith(_METADATA_DIRS) or (egg and name == "EGG-INFO")):
            continue
        path = f"{root}/{name}"
        try:
            text = _entry_points_text(path, groups)
            distribution_name, version = _identity(name, path, needed=text is not None)
            entries = () if text is None else parse_entry_points(text, groups)
        except MalformedMetadata as error:
            malformed.append(Malformed(_label(name), path, str(error)))
            continue
        if distribution_name:
            yield Distribution(distribution_name, version, path, root, entries)


def _label(folder: str) -> str:
    return folder.rsplit(".", 1)[0]


def _newer(one: Distribution, other: Distribution) -> tuple[Distribution, Distribution]:
    """Of two versions in one folder (a broken upgrade), the later first; one without METADATA is none."""
    if _has_metadata(one) != _has_metadata(other):
        return (one, other) if _has_metadata(one) else (other, one)
    from packaging.version import InvalidVersion, Version

    try:
        later = Version(one.version) > Version(other.version)
    except InvalidVersion:
        later = one.version > other.version
    return (one, other) if later else (other, one)


def _has_metadata(distribution: Distribution) -> bool:
    """Asked only of two that have one name; an archive's is known to be there."""
    names = ("METADATA", "PKG-INFO")
    return distribution.in_archive or any(os.path.exists(f"{distribution.path}/{name}") for name in names)


def _entry_points_text(path: str, groups: Sequence[str]) -> str | None:
    """The text of entry_points.txt if it speaks of one of `groups`; None if not."""
    data = _read(f"{path}/entry_points.txt", _MAX_ENTRY_POINTS)
    if data is None or not any(group.encode() in data for group in groups):
        return None
    if len(data) > _MAX_ENTRY_POINTS:
        raise MalformedMetadata(f"entry_points.txt is longer than {_MAX_ENTRY_POINTS} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedMetadata(f"entry_points.txt is not UTF-8: {error.reason} at byte {error.start}") from error


def _read(path: str, limit: int) -> bytes | None:
    """At most `limit` + 1 bytes of a regular file; None if there is none (a FIFO would hold us up for ever)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MalformedMetadata(f"{os.path.basename(path)} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MalformedMetadata(f"{os.path.basename(path)} is not a regular file")
        return os.read(descriptor, min(status.st_size, limit + 1))
    finally:
        os.close(descriptor)


def _identity(folder: str, path: str, *, needed: bool) -> tuple[str, str]:
    """Normalised name and version; ("", "") for a bystander that does not say."""
    name, _, rest = _label(folder).partition("-")
    version = rest.partition("-")[0] if folder.endswith(".egg-info") else rest
    if name and version and folder != "EGG-INFO" and not name.startswith("~"):
        return normalise(name), version
    if not needed:
        return ("", "") if name.startswith("~") or folder == "EGG-INFO" else (normalise(name), version)
    if name.startswith("~"):
        raise MalformedMetadata("left behind by an interrupted pip run")
    headers = _headers(path)
    if not headers.get("name") or not headers.get("version"):
        raise MalformedMetadata("neither the folder's name nor its metadata give a name and a version")
    return normalise(headers["name"]), headers["version"]


def _headers(path: str) -> dict[str, str]:
    """Name, Version and Summary from METADATA or PKG-INFO."""
    data = _read(f"{path}/METADATA", _HEADER_BYTES)
    if data is None:
        data = _read(f"{path}/PKG-INFO", _HEADER_BYTES)
    if data is None:
        raise MalformedMetadata("METADATA is missing")
    head = data[:_HEADER_BYTES].decode("utf-8", "replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in head.splitlines())
    return {key.lower(): value.strip() for key, _, value in pairs if key.lower() in ("name", "version", "summary")}


def summary(distribution: Distribution) -> str:
    """The line by which a distribution describes itself; empty where there is none."""
    try:
        return _headers(distribution.path).get("summary", "")
    except MalformedMetadata:
        return ""


def _check_metadata(distribution: Distribution) -> None:
    """A plugin's METADATA (no bystander's) must name the distribution that its folder names."""
    headers = _headers(distribution.path)
    stated = (normalise(headers.get("name", "")), headers.get("version", ""))
    if not stated[0] or not stated[1]:
        raise MalformedMetadata("METADATA gives no name or no version")
    if stated[0] != distribution.name:
        raise MalformedMetadata(f"METADATA names another distribution: {stated[0]!r:.64}")


_ENTRY = re.compile(r"[^=\s\[][^=]*?\s*=\s*(\S.*)")


def parse_entry_points(text: str, groups: Sequence[str] = GROUPS) -> tuple[EntryPoint, ...]:
    """The entries of `groups`; raises MalformedMetadata, naming the line, for what is neither section nor entry."""
    found: dict[tuple[str, str], EntryPoint] = {}
    group: str | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group is None or not _ENTRY.fullmatch(line):
            raise MalformedMetadata(f"entry_points.txt line {number} is no entry: {line!r:.64}")
        elif group in groups:
            name, value = (part.strip() for part in line.split("=", 1))
            entry = EntryPoint(group, name, value)
            if found.setdefault((group, name), entry) != entry:
                raise MalformedMetadata(f"entry_points.txt line {number} gives {name!r:.64} a second time")
    return tuple(found.values())


def _in_archive(path: str, groups: Sequence[str], malformed: list[Malformed]) -> Iterator[Distribution]:
    """A zip archive or egg file on `sys.path`, by way of `importlib_metadata`."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return
    import importlib_metadata

    for distribution in importlib_metadata.distributions(path=[path]):
        text = distribution.read_text("entry_points.txt") or ""
        name, version = distribution.metadata["Name"], distribution.version
        try:
            entries = parse_entry_points(text, groups) if any(group in text for group in groups) else ()
        except MalformedMetadata as error:
            malformed.append(Malformed(normalise(name), path, str(error)))
        else:
            yield Distribution(normalise(name), version, path, path, entries)
