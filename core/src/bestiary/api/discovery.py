"""What is installed, from metadata alone: no plugin is imported, and no METADATA file of a bystander is opened.

The result equals `importlib_metadata.entry_points()` for the groups of interest: folders on `sys.path` in order, the
first of two distributions with one name wins. It is found by listing folders ourselves, for two reasons: importing
`importlib_metadata` and reading metadata through it costs several times the scan, and it skips in silence what is
malformed, which we report. Zip archives on `sys.path` go through `importlib_metadata`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from .distributions import (
    ALIASES,
    API,
    CONTRACTS,
    GGUF,
    GROUPS,
    HOOKS,
    MODELS,
    REGISTRARS,
    Distribution,
    Installation,
    Malformed,
    normalise,
)
from .metadata import (
    MalformedMetadata,
    check_metadata,
    entry_points_text,
    has_metadata,
    identity,
    label,
    parse_entry_points,
)

_METADATA_DIRS = (".dist-info", ".egg-info")


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
            if other is not distribution and not has_metadata(other) and has_metadata(distribution):
                malformed.append(Malformed(other.name, other.path, f"METADATA is missing; {distribution} counts"))
                found[name] = distribution
    plugins = []
    for distribution in found.values():
        if distribution.entry_points:
            try:
                if not distribution.in_archive:
                    check_metadata(distribution)
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
            text = entry_points_text(path, groups)
            distribution_name, version = identity(name, path, needed=text is not None)
            entries = () if text is None else parse_entry_points(text, groups)
        except MalformedMetadata as error:
            malformed.append(Malformed(label(name), path, str(error)))
            continue
        if distribution_name:
            yield Distribution(distribution_name, version, path, root, entries)


def _newer(one: Distribution, other: Distribution) -> tuple[Distribution, Distribution]:
    """Of two versions in one folder (a broken upgrade), the later first; one without METADATA is none."""
    if has_metadata(one) != has_metadata(other):
        return (one, other) if has_metadata(one) else (other, one)
    from packaging.version import InvalidVersion, Version

    try:
        later = Version(one.version) > Version(other.version)
    except InvalidVersion:
        later = one.version > other.version
    return (one, other) if later else (other, one)


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
