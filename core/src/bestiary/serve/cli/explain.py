"""`bestiary explain [CODE]`: what an error code means, and what to do about it."""

from __future__ import annotations

import dataclasses
import textwrap

import click
from click.shell_completion import CompletionItem

from bestiary.api import catalogue
from bestiary.api.catalogue import CodeEntry

from .options import debug_option, json_option
from .output import Table, show, write_json

_WIDTH = 100


def _complete_code(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    typed = incomplete.upper()
    return [
        CompletionItem(code, help=each.title)
        for code, each in catalogue.entries().items()
        if code.startswith(typed)
    ]  # fmt: skip


@click.command()
@click.argument("code", required=False, shell_complete=_complete_code)
@json_option
@debug_option
def explain(code: str | None, as_json: bool) -> None:
    """Say what the error CODE means, why it happens and what to do; without CODE, list all.

    Case, dashes and underscores do not matter.
    """
    if code is None:
        known = catalogue.entries().values()
        if as_json:
            write_json([dataclasses.asdict(each) for each in known])
        else:
            show([Table(title, ("code", "HTTP", "meaning"),
                        [(each.code, str(each.status), each.title) for each in known if each.area == area])
                  for area, title in catalogue.AREAS.items()])  # fmt: skip
        return
    found = catalogue.entry(code)
    if as_json:
        write_json(dataclasses.asdict(found))
    else:
        print("\n".join(_text(found)))


def _text(found: CodeEntry) -> list[str]:
    lines = [f"{found.code}: {found.title}", "", *_filled(found.meaning), "", "Usual causes:"]
    for cause in found.causes:
        lines += _filled(cause, first="  - ", later="    ")
    return [
        *lines,
        "",
        "What to do:",
        *_filled(found.remedy, first="  ", later="  "),
        "",
        f"HTTP status: {found.status}",
    ]


def _filled(text: str, first: str = "", later: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
