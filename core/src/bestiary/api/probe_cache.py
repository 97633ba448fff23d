"""Answers of `probe`, kept on disk: importing torch to learn what a class can do takes seconds.

A key is everything the answer depends on: the distribution's name, version and RECORD (for one edited in place: its
source files' times), core, Python and torch. A failure also depends on what else is installed (a missing dependency
may come), so all versions are part of a failure's key. A probe that hung is not kept. Entries are replaced atomically,
and one that cannot be read counts as absent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bestiary import __version__

from . import record
from .distributions import Distribution
from .probe import ProbeResult
from .version import API_VERSION

logger = logging.getLogger("bestiary.cache")

_MAX_SOURCES = 2000
_MAX_ENTRY = 1 << 17


def cache_directory() -> Path:
    """``$BESTIARY_CACHE``, else ``bestiary`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    explicit = os.environ.get("BESTIARY_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "bestiary"


class ProbeCache:
    """The one owner of the cache folder's `probe` part.

    Args:
        versions: every installed distribution's version, by normalised name.
        helpers: distributions whose code takes part in others' imports: what they are made of counts as well.
    """

    def __init__(
        self,
        versions: Mapping[str, str],
        directory: Path | None = None,
        helpers: Sequence[tuple[Distribution, str]] = (),
    ) -> None:
        self._directory = (directory or cache_directory()) / "probe"
        self._torch = versions.get("torch", "")
        self._environment = _hash(sorted(versions.items()))
        self._helpers = [_content(distribution, value) for distribution, value in helpers]
        self._complained = False

    def get(self, distribution: Distribution, value: str) -> ProbeResult | None:
        if not self._directory.is_dir():
            return None
        key = self._key(distribution, value)
        try:
            with open(self._path(key), "rb") as file:
                entry = json.loads(file.read(_MAX_ENTRY))
            result = ProbeResult.from_dict(entry["result"])
            valid = entry["key"] == key and (result.outcome == "ok" or entry["environment"] == self._environment)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return result if valid else None

    def put(self, distribution: Distribution, value: str, result: ProbeResult, *, complain: bool = True) -> None:
        """Keep the answer. A folder that cannot be written is one line in the log, if `complain`."""
        if result.outcome == "hung":
            return
        import tempfile

        key = self._key(distribution, value)
        entry = {"key": key, "environment": self._environment, "result": result.as_dict()}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(entry, file)
            os.replace(temporary, self._path(key))
        except OSError as error:
            if complain and not self._complained:
                logger.warning("%s cannot be written (%s): inspections are not kept", self._directory, error.strerror)
            self._complained |= complain

    def _key(self, distribution: Distribution, value: str) -> dict[str, Any]:
        return {
            "distribution": [distribution.name, distribution.version, distribution.path],
            "content": _content(distribution, value),
            "helpers": self._helpers,
            "class": value,
            "core": [__version__, *API_VERSION],
            "python": sys.version,
            "torch": self._torch,
        }

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self._directory / f"{_hash(key)[:40]}.json"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _content(distribution: Distribution, value: str) -> str:
    return record.digest(distribution) or _sources_digest(value)


def _sources_digest(value: str) -> str:
    """Names, sizes and times of the top-level package's Python files and tables, found without importing it."""
    try:
        spec = importlib.util.find_spec(value.partition(":")[0].partition(".")[0].strip())
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "absent"
    roots = list(spec.submodule_search_locations or ())
    files = [Path(spec.origin)] if spec.origin and not roots else []
    for root in roots:
        files += sorted(path for kind in ("*.py", "*.toml") for path in Path(root).rglob(kind))[:_MAX_SOURCES]
    return _hash([(str(path), *_stamp(path)) for path in files])


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
