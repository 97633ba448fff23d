"""The form that an answer is to have, on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from bestiary.api.structured import StructuredOutputsParams

from .options import SamplingOption
from .reading import read_text

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "json": ("--json-schema", {"type": _FILE, "help": "A file with a JSON Schema, which the answer is to satisfy."}),
    "json_object": ("--json-object", {"is_flag": True, "help": "The answer is to be a JSON object."}),
    "regex": ("--regex", {"metavar": "REGEX", "help": "A regular expression, which the whole answer is to match."}),
    "grammar": ("--grammar", {"type": _FILE, "help": "A file with a grammar of the answer, in Lark's notation."}),
    "choice": ("--choice", {"metavar": "TEXT", "multiple": True, "help": "What the answer may be; repeatable."}),
}
"""Field of `StructuredOutputsParams` → its option."""


def form_options(command: Command) -> Command:
    """Add an option for each form; `chosen_form` reads them."""
    for name, (flag, settings) in reversed(_OPTIONS.items()):
        command = click.option(flag, f"form_{name}", cls=SamplingOption, **settings)(command)
    return command


def chosen_form(options: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """The form that was asked for; None where any will do.

    Raises:
        click.UsageError: several were. UsageError: a file is no text. RequestError: what was given is too long.
    """
    given = {name: value for name in _OPTIONS if (value := options[f"form_{name}"])}
    if len(given) > 1:
        raise click.UsageError(f"an answer has one form: {' or '.join(_OPTIONS[name][0] for name in given)}")
    for name, value in given.items():
        text: Any = read_text(value, name) if isinstance(value, Path) else value
        return StructuredOutputsParams(**{name: text})
    return None
