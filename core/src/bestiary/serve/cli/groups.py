"""Commands that hold commands."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module

import click

from .configured import ARGUMENTS, configured
from .output import say


class Group(click.Group):
    """A group that explains itself on standard error, and ends with 1, where no command is named: nothing was done."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            say(ctx.get_help())
            ctx.exit(1)
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        return None if found is None else configured(found)


class LazyGroup(Group):
    """A group that imports a command when it is called, not when it is listed.

    Args:
        lazy: name → where the command is, and its line. foreign: whether packages may add more.
    """

    def __init__(
        self, *args: object, lazy: Mapping[str, tuple[str, str]], foreign: bool = False, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy
        self.foreign = foreign

    def lines(self) -> dict[str, str]:
        """Every command → its line."""
        own = {name: line for name, (_, line) in self.lazy.items()}
        if not self.foreign:
            return own
        from .foreign import foreign_commands

        return own | {name: line for name, line in foreign_commands().items() if name not in own}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lines())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            if not self.foreign:
                return None
            from .foreign import foreign_command

            found = foreign_command(cmd_name)
            return None if found is None else configured(found)
        module, _, name = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return configured(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-") and args[0] not in self.lines():
            names = list(self.lines())
            near = difflib.get_close_matches(args[0], names, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
            ctx.fail(f"No such command {args[0]!r}: {hint}")
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines().items()))
