"""`bestiary config [COMMAND]`: what every option is, and who said so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from enum import Enum
from typing import Any

import click
from click.shell_completion import CompletionItem

from bestiary.api import choices
from bestiary.api.errors import UsageError

from .config_files import PROJECT
from .options import debug_option, json_option
from .output import Table, show, write_json
from .settings import Settings, Value, options_of, settings_of, shown

DEFAULT = "default"


def _complete_command(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    given = tuple(ctx.params.get("command") or ())
    names = [path for path, _ in _commands(ctx.find_root()) if path[: len(given)] == given and len(path) > len(given)]
    return [CompletionItem(name) for name in dict.fromkeys(path[len(given)] for path in names)
            if name.startswith(incomplete)]  # fmt: skip


@click.command()
@click.argument("command", nargs=-1, shell_complete=_complete_command)
@json_option
@debug_option
@click.pass_context
def config(ctx: click.Context, command: tuple[str, ...], as_json: bool) -> None:
    """Show every option of COMMAND, its value and where that comes from; without COMMAND, what is set for any.

    A flag is stronger than the environment (BESTIARY_MAX_TOKENS for --max-tokens), that than ./bestiary.toml, and that
    than the user's file, bestiary/config.toml under $XDG_CONFIG_HOME or ~/.config.
    """
    settings = settings_of(ctx)
    commands = {path: each for path, each in _commands(ctx.find_root()) if path[: len(command)] == command}
    if not commands:
        known = ", ".join(" ".join(path) for path, _ in _commands(ctx.find_root()))
        raise click.UsageError(f"there is no command {' '.join(command)[:64]!r}: {known}")
    document = {" ".join(path): list(_rows(settings, path, each, ctx)) for path, each in commands.items()}
    keys = frozenset(key for _, each in _commands(ctx.find_root()) for key in options_of(each))
    strangers = settings.strangers(keys)
    if as_json:
        write_json({"files": _files(settings), "commands": document, "unknown_variables": strangers})
        return
    tables = [Table("files", ("file", "state"), [(each["file"], each["state"]) for each in _files(settings)])]
    for name, rows in document.items():
        chosen = rows if command else [row for row in rows if row["from"] != DEFAULT]
        tables.append(
            Table(name, ("option", "value", "from"), [(r["option"], _text(r["value"]), r["from"]) for r in chosen])
        )
    show([*tables, Table("variables that no option has", ("variable",), [(name,) for name in strangers])])
    if not command and len([each for each in tables if each.rows]) < 2:
        print("\nnothing is set: every option has its default; bestiary config COMMAND shows them")


def _commands(root: click.Context) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Path → command, of all that do something."""

    def below(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        for name in group.list_commands(root):
            command = group.get_command(root, name)
            if isinstance(command, click.Group):
                yield from below(command, (*path, name))
            elif command is not None and options_of(command):
                yield (*path, name), command

    yield from below(root.command, ()) if isinstance(root.command, click.Group) else ()


def _rows(
    settings: Settings, path: tuple[str, ...], command: click.Command, ctx: click.Context
) -> Iterator[dict[str, Any]]:
    with click.Context(command, info_name=path[-1], parent=ctx.find_root()) as own:
        for key, option in options_of(command).items():
            found = settings.of(path, option) or Value(_default(option, own), DEFAULT)
            try:
                value = option.type_cast_value(own, found.value)
            except click.BadParameter as error:
                raise UsageError(f"{found.origin}: {key}: {error.message}", field=key, value=found.value) from None
            yield {"option": key, "value": shown(option, value), "from": found.origin}


def _default(option: click.Option, ctx: click.Context) -> Any:
    """None where there is none: newer versions of click have a word of their own for that."""
    found = option.get_default(ctx)
    return None if isinstance(found, Enum) else found


def _files(settings: Settings) -> list[dict[str, str]]:
    """The files that count, the stronger first: read, not there, or not read and why."""
    names = [*([] if os.environ.get(choices.CONFIG) else [PROJECT]), str(choices.config_path())]
    states = dict.fromkeys(names, "not there")
    states |= {name: f"not read: {reason}" for name, reason in settings.ignored.items()}
    states |= {file.shown: "read" for file in settings.files}
    return [{"file": name, "state": state} for name, state in states.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
