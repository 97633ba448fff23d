"""Commands that installed packages add: entry points of the group `bestiary_commands`, name → a click command.

Listing them reads metadata alone; the module is imported when the command is called.
"""

from __future__ import annotations

import click

from bestiary.api import distributions, metadata
from bestiary.api.distributions import Distribution, EntryPoint
from bestiary.api.errors import BrokenPlugin, UsageError
from bestiary.api.importing import load_object
from bestiary.api.registry import ModelRegistry
from bestiary.api.version import incompatibility


def foreign_commands() -> dict[str, str]:
    """Name → its line in `bestiary --help`: what the package says it is."""
    found: dict[str, str] = {}
    for entry, distribution in _offers():
        found[entry.name] = f"{metadata.summary(distribution)} (package {distribution.name})".strip()
    return found


def foreign_command(name: str) -> click.Command | None:
    """The command that a package offers as `name`; None where none does.

    Raises:
        UsageError: two do. BrokenPlugin, IncompatiblePlugin: it cannot be had.
    """
    offers = [(entry, distribution) for entry, distribution in _offers() if entry.name == name]
    if not offers:
        return None
    if len(offers) > 1:
        raise UsageError(
            f"{' and '.join(str(distribution) for _, distribution in offers)} both add a command {name}",
            field=name, fix="uninstall one of them",
        )  # fmt: skip
    ((entry, distribution),) = offers
    refused = incompatibility(distribution.name, distribution.version, distribution.api_versions)
    if refused is not None:
        raise refused
    command = load_object(entry.value, f"dist {distribution}")
    if not isinstance(command, click.Command):
        raise BrokenPlugin(
            f"{entry.value} is no click command (from dist {distribution})", field=name, limit="a click.Command"
        )
    return command


def _offers() -> list[tuple[EntryPoint, Distribution]]:
    return list(ModelRegistry.installation.providers(distributions.COMMANDS))
