"""Configuration files: which are read, and that nothing in them is misspelt.

``./bestiary.toml`` is the project's, ``bestiary/config.toml`` under ``$XDG_CONFIG_HOME`` or ``~/.config`` the user's;
``--config FILE``, or ``$BESTIARY_CONFIG``, stands in place of both. What lies in a model's directory is never read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.api import choices
from bestiary.api.errors import UsageError

PROJECT = "bestiary.toml"
PLUGINS = "plugins"
_MODEL_FILES = ("config.json", "params.json", "adapter_config.json")
_MODEL_SUFFIXES = (".gguf", ".safetensors")

Keys = Mapping[tuple[str, ...], frozenset[str]]
"""Path of a command → keys of its options. The path of a group has the keys of all its commands."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that was read. shown: as people are told of it. project: it is ./bestiary.toml. keys: what it may have."""

    shown: str
    data: Mapping[str, Any]
    project: bool
    keys: Keys

    def table(self, path: tuple[str, ...]) -> Mapping[str, Any]:
        """Options in the table of the command at `path`, keys with underscores; empty where there is none."""
        found: Any = self.data
        for name in path:
            found = found.get(name, {})
        return {key.replace("-", "_"): value for key, value in found.items() if (*path, key) not in self.keys}


def find_files(arguments: Iterable[str], explicit: bool) -> tuple[list[Path], dict[str, str]]:
    """The files there are, the stronger first, and those that are not read, with the reason.

    Args:
        arguments: of the command line: one may name a model's directory.
        explicit: `choices.config_path` is a file that the user named.
    """
    user, project = choices.config_path(), Path(PROJECT)
    if explicit or not project.is_file():
        return [user] if explicit or user.is_file() else [], {}
    here = Path.cwd()
    models = [here, *(Path(each).resolve() for each in arguments if each and "\0" not in each and Path(each).is_dir())]
    if any(here.is_relative_to(each) and _holds_model(each) for each in models):
        reason = f"it lies in a model's directory; --config {PROJECT} reads it all the same"
        return [user] if user.is_file() else [], {PROJECT: reason}
    return [project, *([user] if user.is_file() and not user.samefile(project) else [])], {}


def _holds_model(directory: Path) -> bool:
    return any(each.name in _MODEL_FILES or each.suffix in _MODEL_SUFFIXES for each in directory.iterdir())


def read_files(paths: Sequence[Path], keys: Keys) -> tuple[ConfigFile, ...]:
    """Raises `UsageError`: a file cannot be read, is not TOML, or has a key that no command has."""
    found = []
    for path in paths:
        data = choices.read_toml(path)
        project = path == Path(PROJECT)
        shown = PROJECT if project else str(path)
        _check_table(shown, data, (), keys)
        found.append(ConfigFile(shown, data, project, keys))
    return tuple(found)


def _check_table(shown: str, table: Mapping[str, Any], path: tuple[str, ...], keys: Keys) -> None:
    commands = {each[len(path)] for each in keys if len(each) > len(path) and each[: len(path)] == path}
    own = keys[path] | ({PLUGINS} if not path else frozenset())
    where = f"{shown} [{'.'.join(path)}]" if path else shown
    spelt: dict[str, str] = {}
    for written, value in table.items():
        key = written.replace("-", "_")
        if key in spelt:
            raise UsageError(f"{where}: {key} is given twice", field=key, details=[spelt[key], written])
        spelt[key] = written
        if written in commands:
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {written} is a command", field=written, value=value, limit="a table")
            _check_table(shown, value, (*path, written), keys)
        elif key not in own:
            near = difflib.get_close_matches(key, sorted({*own, *commands}), 1)
            hint = f"did you mean {near[0]}?" if near else "bestiary config lists the options of every command"
            raise UsageError(f"{where}: there is no option {written[:64]!r}", field=written, limit=hint)
