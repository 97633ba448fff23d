"""An installed distribution's RECORD: whether its files are still those that were installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Literal

from .distributions import Distribution

_MAX_BYTES = 64 << 20
_KEPT_METADATA = ("METADATA", "WHEEL", "entry_points.txt")
_DATA_FOLDER = re.compile(r"^[^/]+\.data/(?:purelib|platlib)/")

RecordStatus = Literal["ok", "modified", "editable", "absent", "unchecked"]


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """`changed` names the files that differ or are gone, relative to the distribution's root."""

    status: RecordStatus
    changed: tuple[str, ...] = ()


def _read(distribution: Distribution, name: str) -> bytes:
    """A file of its metadata, if it is a regular one of sane size; a FIFO would hold us up for ever."""
    path = os.path.join(distribution.path, name)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise OSError(f"{name} is no regular file of at most {_MAX_BYTES} bytes")
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES)


def is_editable(distribution: Distribution) -> bool:
    """Whether it was installed with `pip install -e` (PEP 610)."""
    try:
        data = json.loads(_read(distribution, "direct_url.json"))
    except (OSError, ValueError, RecursionError):
        return False
    info = data.get("dir_info") if isinstance(data, dict) else None
    return isinstance(info, dict) and info.get("editable") is True


def digest(distribution: Distribution) -> str | None:
    """SHA-256 of RECORD itself; None if there is none or the files are edited in place."""
    try:
        data = _read(distribution, "RECORD")
    except OSError:
        return None
    return None if is_editable(distribution) else hashlib.sha256(data).hexdigest()


def content_digest(distribution: Distribution) -> str | None:
    """SHA-256 over the names and hashes of what the wheel brought, as RECORD states them: the same for a wheel and for
    what was installed from it, whatever an installer adds. None if RECORD is missing or the files are edited in place.
    """
    rows = _rows(distribution)
    if rows is None or is_editable(distribution):
        return None
    files = sorted((_DATA_FOLDER.sub("", row[0]), row[1]) for row in rows if len(row) >= 2 and row[1])
    brought = [[name, stated] for name, stated in files if _comes_from_wheel(name)]
    return hashlib.sha256(json.dumps(brought).encode()).hexdigest()


def _comes_from_wheel(name: str) -> bool:
    folder, _, rest = name.partition("/")
    if folder.endswith(".dist-info"):
        return rest in _KEPT_METADATA
    beside = folder == ".." or folder.endswith(".data") or os.path.isabs(name)  # scripts, headers, data
    return not beside and not name.endswith(".pyc")


def _rows(distribution: Distribution) -> list[list[str]] | None:
    """RECORD's rows; None if it is missing or no table."""
    import csv

    try:
        return list(csv.reader(_read(distribution, "RECORD").decode().splitlines()))
    except (OSError, ValueError, csv.Error):
        return None


def verify(distribution: Distribution) -> RecordCheck:
    """Hashes every file that RECORD lists with a hash."""
    rows = _rows(distribution)
    if rows is None:
        return RecordCheck("absent")
    changed = [row[0] for row in rows if len(row) >= 2 and row[1] and not _matches(distribution.root, row[0], row[1])]
    if changed:
        return RecordCheck("modified", tuple(changed))
    return RecordCheck("editable" if is_editable(distribution) else "ok")


def _matches(root: str, name: str, stated: str) -> bool:
    algorithm, _, value = stated.partition("=")
    path = os.path.join(root, name)
    if algorithm not in ("sha256", "sha384", "sha512") or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).digest()
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode() == value.rstrip("=")
