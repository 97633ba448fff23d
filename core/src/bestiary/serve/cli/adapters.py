"""Which of the adapters on the command line answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def lora_name_option(command: Command) -> Command:
    """Add --lora-name; `chosen_adapter` reads it."""
    words = "Which of several adapters answers.  [default: the only one]"
    return click.option("--lora-name", metavar="NAME", help=words)(command)


def chosen_adapter(options: Mapping[str, Any]) -> str | None:
    """The name of the adapter that answers: the one named, or the only one there is; None for the model alone.

    Raises:
        click.UsageError: there are several and none was named, or the named one is not there, or one is there twice.
    """
    names = [name for name, _ in options["lora_modules"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.UsageError(f"--lora {twice[0]}=… is given twice")
    wanted: str | None = options["lora_name"]
    if wanted is not None and wanted not in names:
        known = ", ".join(names) or "none; --lora NAME=PATH adds one"
        raise click.UsageError(f"--lora-name {wanted[:64]!r} is none of the adapters given ({known})")
    if wanted is None and len(names) > 1:
        raise click.UsageError(f"--lora-name says which adapter answers: {', '.join(names)}")
    return wanted or next(iter(names), None)
