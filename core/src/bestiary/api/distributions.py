"""What is installed, in rows: distributions, their entry points, and what was skipped and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MODELS, ALIASES, GGUF = "vllm_models", "bestiary_aliases", "bestiary_gguf"
HOOKS, API, CONTRACTS = "bestiary_hooks", "bestiary_api", "bestiary_contracts"
REGISTRARS, IMPORT_CONTEXTS, COMMANDS = "bestiary_registrars", "bestiary_import_contexts", "bestiary_commands"
GROUPS = (MODELS, ALIASES, GGUF, HOOKS, API, CONTRACTS, REGISTRARS, IMPORT_CONTEXTS, COMMANDS)
"""The groups of entry points that plugins offer something in, or state something by."""


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


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
