"""What the commands share: a range of lengths, and where a record goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


def lengths(text: str, option: str = "--input-len") -> tuple[int, int]:
    """``"64"`` or ``"64:256"`` → the shortest and the longest length."""
    shortest, _, longest = text.partition(":")
    try:
        found = int(shortest), int(longest or shortest)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise click.BadParameter(f"{text!r} is neither a number nor SHORTEST:LONGEST", param_hint=option)
    return found


def finish(options: Mapping[str, Any], record: dict[str, Any]) -> None:
    """Write the record where it is wanted, and print it or its table."""
    from .record import as_json
    from .table import table

    if options["output"] is not None:
        options["output"].write_text(as_json(record), "utf-8")
    click.echo(as_json(record) if options["as_json"] else table(record), nl=not options["as_json"])
