"""What was registered by hand, for other processes: they find what is installed, and must be told the rest."""

from __future__ import annotations

from bestiary.api.entries import Entry, RegisteredAlias, Resolution
from bestiary.api.errors import UsageError
from bestiary.api.registry import ModelRegistry, Registry


def needed(found: Resolution) -> dict[str, str]:
    """What processes that build the same model are to register: architecture to ``"module:Class"``.

    Raises:
        UsageError: it cannot be named: a class of a function or of `__main__`, or an alias that only this process has.
    """
    entry = found.entry if isinstance(found.entry, RegisteredAlias) else found.target
    if entry.distribution is not None:
        return {}
    if not _is_nameable(entry):
        raise refusal(entry.architecture, entry.value)
    return {entry.architecture: entry.value}


def all_of(registry: Registry = ModelRegistry) -> tuple[dict[str, str], dict[str, str]]:
    """What processes that may build any model are to register, as `needed`; and what cannot be named."""
    named: dict[str, str] = {}
    unnamed: dict[str, str] = {}
    for entry in registry.by_hand():
        (named if _is_nameable(entry) else unnamed)[entry.architecture] = entry.value
    return named, unnamed


def refusal(architecture: str, value: str) -> UsageError:
    return UsageError(
        f"{architecture} was registered by hand, and other processes cannot import it",
        field=architecture, value=value, limit="module:Class, importable in a new process",
        fix="put it into a module and register it by name, or into a package: bestiary new",
    )  # fmt: skip


def _is_nameable(entry: Entry) -> bool:
    module, _, name = entry.value.partition(":")
    return bool(name) and module != "__main__" and "<locals>" not in name
