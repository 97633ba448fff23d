"""The last certificate of each distribution, kept on disk, and what it is worth for the one that is installed now.

A certificate is the document that `bestiary certify --json` prints. It speaks of one build: where the distribution's
version, its files or core have changed since, it is of another. Reading one opens the certificate and the
distribution's RECORD, and imports nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bestiary import __version__

from . import record
from .distributions import Distribution
from .probe_cache import cache_directory

logger = logging.getLogger("bestiary.cache")

SCHEMA = 1
VERDICTS = ("certified", "failed", "broken", "incomplete", "partial")
_MAX_BYTES = 1 << 22
_PLAIN_NAME = re.compile(r"[a-z0-9-]{1,100}")

Build = Literal["same", "other", "editable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of an installed distribution. `build` is "editable" where its files are edited in place: whether
    they are still those that were certified is not known."""

    verdict: str
    passed: int
    failed: int
    total: int
    date: str
    build: Build

    def __str__(self) -> str:
        if self.build == "other":
            return "other build"
        count = self.failed if self.verdict == "failed" else self.passed
        text = f"{self.verdict} {count}/{self.total}"
        return f"{text}, editable" if self.build == "editable" else text

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def keep(document: Mapping[str, Any], directory: Path | None = None) -> Path | None:
    """Replace the distribution's certificate in the cache folder `directory` (default: the user's); returns where.

    A cache that cannot be written is a line in the log, and None.
    """
    import tempfile

    path = _path(document["distribution"], directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the certificate is not kept", path.parent, error.strerror)
        return None
    return path


def standings(distributions: Iterable[Distribution], directory: Path | None = None) -> dict[Distribution, Standing]:
    """Those that have a certificate, and what it says. One that cannot be read counts as absent."""
    if not _folder(directory).is_dir():
        return {}
    found = {one: _standing(one, directory) for one in dict.fromkeys(distributions)}
    return {one: standing for one, standing in found.items() if standing is not None}


def _standing(distribution: Distribution, directory: Path | None) -> Standing | None:
    try:
        with open(_path(distribution.name, directory), "rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
        counts = {name: int(document["counts"][name]) for name in ("passed", "failed", "not_run")}
        if document["schema"] != SCHEMA or document["verdict"] not in VERDICTS:
            return None
        if document["distribution"] != distribution.name:
            return None
        return Standing(
            verdict=document["verdict"],
            passed=counts["passed"],
            failed=counts["failed"],
            total=sum(counts.values()),
            date=str(document["date"]),
            build=_build(document, distribution),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _build(document: Mapping[str, Any], distribution: Distribution) -> Build:
    if (document["version"], document["core"]) != (distribution.version, __version__):
        return "other"
    if record.is_editable(distribution):
        return "editable"
    content = record.content_digest(distribution)
    return "same" if content is not None and content == document["record"] else "other"


def _path(name: str, directory: Path | None) -> Path:
    stem = name if _PLAIN_NAME.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:40]
    return _folder(directory) / f"{stem}.json"


def _folder(directory: Path | None) -> Path:
    return (directory or cache_directory()) / "certificates"
