"""Where options get their values: flag > environment > ./bestiary.toml > the user's file > default.

An option is known by its key, the first of its long spellings with underscores: ``--max-tokens`` is ``max_tokens`` in a
file and ``BESTIARY_MAX_TOKENS`` in the environment. A file has keys that hold for every command with such an option,
and a table for each command, whose keys are stronger; of two files the stronger one wins in either place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bestiary.api import choices

from .config_files import ConfigFile
from .config_values import from_file, from_text
from .kinds import PAIR

PREFIX = "BESTIARY_"
ONCE = frozenset({"config", "debug", "dry_run", "help", "json", "version"})
"""Keys of options that say how one run goes: on the command line only."""
COMMAND_LINE = "command line"
_SECRET = ("api_key",)
_META = "bestiary.settings"


@dataclass(frozen=True, slots=True)
class Value:
    """What an option gets when no flag says otherwise, and where that was found."""

    value: Any
    origin: str


def key_of(option: click.Option) -> str:
    """`click.Option` → its key; an option without a long spelling has its parameter's name."""
    long = next((each for each in option.opts if each.startswith("--")), option.name or "")
    return long.lstrip("-").replace("-", "_")


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Key → option, of those that files and the environment may set. Plugins are chosen in a table of their own."""
    options = {key_of(each): each for each in command.params if isinstance(each, click.Option)}
    return {key: each for key, each in options.items() if key not in ONCE and each.name != "plugin"}


class Settings:
    """What the environment and the files say, for every command.

    Attributes:
        files: those that are read, the stronger first. ignored: file → why it is not read.
    """

    def __init__(
        self, files: tuple[ConfigFile, ...], environment: Mapping[str, str], ignored: Mapping[str, str] | None = None
    ) -> None:
        self.files, self.ignored = files, ignored or {}
        self._environment = environment

    def of(self, path: tuple[str, ...], option: click.Option) -> Value | None:
        """What `option` of the command at `path` (``("bench", "serve")``) gets; None where nothing is said.

        Raises:
            UsageError: a file has a value of another kind.
        """
        key = key_of(option)
        text = self._environment.get(PREFIX + key.upper())
        if text:
            return Value(from_text(option, text, PREFIX + key.upper()), PREFIX + key.upper())
        for file in self.files:
            for depth in range(len(path), -1, -1):
                table = file.table(path[:depth])
                if key in table:
                    where = f"{file.shown} [{'.'.join(path[:depth])}]" if depth else file.shown
                    return Value(from_file(option, table[key], key, where), where)
        return None

    def defaults(self, path: tuple[str, ...], command: click.Command) -> dict[str, Any]:
        """Parameter → value, as click's `default_map` has it."""
        found = {each.name: self.of(path, each) for each in options_of(command).values()}
        return {str(name): each.value for name, each in found.items() if each is not None}

    def plugins(self) -> dict[str, str]:
        """``[plugins]`` of the project's file, for names of which the environment does not speak; the user's file is
        read where the choices are made (`bestiary.api.choices`)."""
        spoken = choices.from_environment()
        project = next((file for file in self.files if file.project), None)
        chosen = {} if project is None else choices.plugins_of(project.data, project.shown)
        return {name: each for name, each in chosen.items() if name not in spoken}

    def strangers(self, keys: frozenset[str]) -> list[str]:
        """Variables of the environment that look like options and are none."""
        known = {PREFIX + key.upper() for key in keys} | _OTHER_VARIABLES
        return sorted(name for name in self._environment if name.startswith(PREFIX) and name not in known)


_OTHER_VARIABLES = frozenset(
    PREFIX + name for name in ("CACHE", "COMPLETE", "CONFIG", "IMPORT_TIMEOUT", "PLUGINS", "STATE")
)


def remember(ctx: click.Context, settings: Settings) -> None:
    ctx.meta[_META] = settings


def settings_of(ctx: click.Context | None) -> Settings:
    """The settings in force for a running command; empty ones outside of any."""
    found = None if ctx is None else ctx.meta.get(_META)
    return found if isinstance(found, Settings) else Settings((), {})


def command_path(ctx: click.Context) -> tuple[str, ...]:
    """Names of the commands from below the program: ``("bench", "serve")``."""
    names: list[str] = []
    each: click.Context | None = ctx
    while each is not None and each.parent is not None:
        names.append(each.info_name or "")
        each = each.parent
    return tuple(reversed(names))


def origin_of(ctx: click.Context, option: click.Parameter) -> str | None:
    """Where a running command's option has its value from: the command line, a variable, a file; None for a default."""
    source = None if option.name is None else ctx.get_parameter_source(option.name)
    if source is click.core.ParameterSource.COMMANDLINE:
        return COMMAND_LINE
    if not isinstance(option, click.Option):
        return None
    if source is click.core.ParameterSource.ENVIRONMENT:  # an option that names its variable itself
        return str(option.envvar)
    if source is not click.core.ParameterSource.DEFAULT_MAP:
        return None
    found = settings_of(ctx).of(command_path(ctx), option)
    return None if found is None else found.origin


def sources(ctx: click.Context) -> Iterator[dict[str, Any]]:
    """Every option of a running command that has no default value: its key, its value and where that is from."""
    for option in ctx.command.params:
        origin = origin_of(ctx, option)
        if isinstance(option, click.Option) and origin is not None and key_of(option) not in ONCE:
            yield {"option": key_of(option), "value": shown(option, ctx.params.get(str(option.name))), "from": origin}


def shown(option: click.Option, value: Any) -> Any:
    """A value as it may be printed, and as JSON has it: secrets are not told."""
    if key_of(option) in _SECRET and value:
        return "…"
    if isinstance(value, tuple):
        return dict(value) if option.type is PAIR else [shown(option, each) for each in value]
    return str(value) if isinstance(value, Path) else value


def with_project_plugins(given: Mapping[str, str]) -> dict[str, str]:
    """Plugin choices of the command line, and under them those of the project's file."""
    return settings_of(click.get_current_context(silent=True)).plugins() | dict(given)


def environment() -> dict[str, str]:
    """The variables that are ours."""
    return {name: text for name, text in os.environ.items() if name.startswith(PREFIX)}
