"""Gives every command `--config FILE`, and its options the values of the environment and of configuration files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bestiary.api import choices
from bestiary.api.errors import RequestError, UsageError
from bestiary.engine.notices import notice

from .config_files import Keys, find_files, read_files
from .settings import COMMAND_LINE, Settings, command_path, environment, options_of, origin_of, remember

_META = "bestiary.config_file"
ARGUMENTS = "bestiary.arguments"


def configured(command: click.Command) -> click.Command:
    """`command`, which reads the settings before its other options are looked at. Groups hand it to their commands."""
    if not isinstance(command, click.Group) and all(each.name != "config_file" for each in command.params):
        command.params.append(config_option(_use))
        if command.callback is not None:
            command.callback = _telling(command.callback)
    return command


def _telling(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback`, whose errors about an option say which file or variable set it, where no flag did."""

    @wraps(callback)
    def call(*values: Any, **options: Any) -> Any:
        try:
            return callback(*values, **options)
        except (UsageError, RequestError) as error:
            key = re.split(r"[.\[]", (error.field or "").lstrip("-").replace("-", "_"), maxsplit=1)[0]
            origin = _origin_of_key(click.get_current_context(), key)
            if origin not in (None, COMMAND_LINE):
                error.details = (*error.details, f"{key} is set by {origin}")
            raise

    return call


def _origin_of_key(ctx: click.Context, key: str) -> str | None:
    return next((origin_of(ctx, each) for name, each in options_of(ctx.command).items() if name == key), None)


def config_option(callback: Any) -> click.Option:
    return click.Option(
        ["--config", "config_file"],
        type=click.Path(dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=callback,
        help="A configuration file, in place of ./bestiary.toml and the user's.",
    )


def note_file(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """For `bestiary --config FILE COMMAND`: the command reads it."""
    if value is not None:
        ctx.meta[_META] = value


def _use(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if ctx.resilient_parsing:
        return
    settings = load(ctx, value or ctx.meta.get(_META))
    remember(ctx, settings)
    ctx.default_map = {**(ctx.default_map or {}), **settings.defaults(command_path(ctx), ctx.command)}


def load(ctx: click.Context, explicit: str | None) -> Settings:
    """Settings for the program that `ctx` is in.

    An explicit file is also where plugins are chosen, here and in processes that are started: `$BESTIARY_CONFIG` names
    it until the program's context is closed.

    Raises:
        UsageError: a file cannot be read, or says what no command understands.
    """
    if explicit is not None:
        _name_file(ctx, explicit)
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        return Settings((), environment())
    paths, ignored = find_files(ctx.meta.get(ARGUMENTS, ()), bool(os.environ.get(choices.CONFIG)))
    for name, reason in ignored.items():
        notice(f"{name} is not read: {reason}")
    files = read_files(paths, keys_of(root, root.command)) if paths else ()
    return Settings(files, environment(), ignored)


def _name_file(ctx: click.Context, path: str) -> None:
    before = os.environ.get(choices.CONFIG)
    os.environ[choices.CONFIG] = str(Path(path).absolute())

    def restore() -> None:
        if before is None:
            os.environ.pop(choices.CONFIG, None)
        else:
            os.environ[choices.CONFIG] = before

    ctx.find_root().call_on_close(restore)


def keys_of(ctx: click.Context, group: click.Group) -> Keys:
    """Which keys a file may have, and where."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    every: frozenset[str] = frozenset()
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            below = keys_of(ctx, command)
            found |= {(name, *path): keys for path, keys in below.items()}
        elif command is not None:
            found[(name,)] = frozenset(options_of(command))
        every |= found.get((name,), frozenset())
    return {(): every, **found}
