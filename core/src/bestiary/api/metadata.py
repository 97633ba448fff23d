"""What one distribution's metadata says: the files of its folder, read no further than they are needed.

Name and version come from the folder's name (``llama_plugin-1.2.dist-info``), compared in normal form (PEP 503).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from .distributions import GROUPS, Distribution, EntryPoint, normalise

_MAX_ENTRY_POINTS = 1 << 20
_HEADER_BYTES = 8192


class MalformedMetadata(ValueError):
    """Internal: turned into a `Malformed` row, never shown as an exception."""


def label(folder: str) -> str:
    return folder.rsplit(".", 1)[0]


def has_metadata(distribution: Distribution) -> bool:
    """Asked only of two that have one name; an archive's is known to be there."""
    names = ("METADATA", "PKG-INFO")
    return distribution.in_archive or any(os.path.exists(f"{distribution.path}/{name}") for name in names)


def entry_points_text(path: str, groups: Sequence[str]) -> str | None:
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


def identity(folder: str, path: str, *, needed: bool) -> tuple[str, str]:
    """Normalised name and version; ("", "") for a bystander that does not say."""
    name, _, rest = label(folder).partition("-")
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


def check_metadata(distribution: Distribution) -> None:
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
