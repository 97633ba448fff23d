"""An installed distribution's RECORD: whether its files are still those that were installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Literal

from .discovery import Distribution

RecordStatus = Literal["ok", "modified", "editable", "absent", "unchecked"]


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """`changed` names the files that differ or are gone, relative to the distribution's root."""

    status: RecordStatus
    changed: tuple[str, ...] = ()


def is_editable(distribution: Distribution) -> bool:
    """Whether it was installed with `pip install -e` (PEP 610)."""
    try:
        with open(os.path.join(distribution.path, "direct_url.json"), "rb") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return False
    info = data.get("dir_info") if isinstance(data, dict) else None
    return isinstance(info, dict) and info.get("editable") is True


def digest(distribution: Distribution) -> str | None:
    """SHA-256 of RECORD itself; None if there is none or the files are edited in place."""
    try:
        with open(os.path.join(distribution.path, "RECORD"), "rb") as file:
            data = file.read()
    except OSError:
        return None
    return None if is_editable(distribution) else hashlib.sha256(data).hexdigest()


def verify(distribution: Distribution) -> RecordCheck:
    """Hashes every file that RECORD lists with a hash."""
    import csv

    try:
        with open(os.path.join(distribution.path, "RECORD"), newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error):
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
