"""`bestiary models`: what is installed, under which short names, and what could be. Imports no torch, no plugin."""

from __future__ import annotations

from typing import Any

import click

from bestiary.api import index
from bestiary.api.errors import ModelError
from bestiary.api.registrars import RegistrarRow
from bestiary.api.registry import ModelRegistry
from bestiary.api.rows import PluginRow

from .kinds import PAIR
from .options import debug_option, json_option
from .output import Table, show, size, write_json
from .settings import with_project_plugins

UNKNOWN = "?"
_CAPABILITIES = (
    "lora",
    "pp",
    "multimodal",
    "moe",
    "quant",
    "inner_state",
    "hybrid",
    "attention_free",
    "eagle",
    "eagle3",
)


@click.command()
@click.option("--installed", is_flag=True, help="Only the architectures that are installed.")
@click.option("--inspect", is_flag=True, help="Import each plugin in a child process and say what it can do.")
@click.option("--plugin", type=PAIR, multiple=True, metavar="ARCHITECTURE=DISTRIBUTION", help="As for generate.")
@json_option
@debug_option
def models(installed: bool, inspect: bool, plugin: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """List installed architectures, models by short name, and packages that can be installed.

    Capabilities are shown where an earlier inspection is still valid, and "?" where nobody has looked (--inspect).
    """
    rows = ModelRegistry.list("run" if inspect else "cached", plugins=with_project_plugins(dict(plugin)))
    registrars = ModelRegistry.list_registrars()
    names = [] if installed else short_names()
    offers = [] if installed else installable({row.architecture for row in rows})
    if as_json:
        document: dict[str, Any] = {
            "architectures": [row.as_dict() for row in rows],
            "registrars": [row.as_dict() for row in registrars],
        }
        if not installed:
            document |= {"short_names": names, "installable": offers}
        write_json(document)
        return
    show([plugin_table(rows), registrar_table(registrars), _short_name_table(names), _installable_table(offers)])
    if any(capabilities(row).endswith(UNKNOWN) for row in rows):
        print(f"\n{UNKNOWN} under capabilities: not looked at yet; bestiary models --inspect does")
    if any(row.status == "unknown" for row in registrars):
        print(f"\n{UNKNOWN} under registers: not called yet; bestiary models --inspect does, in a child process")
    if not rows:
        hint = f": pip install {installable(set())[0]['package']}" if installable(set()) else ""
        print(f"no architecture is installed{hint}")


def registrar_table(rows: list[RegistrarRow]) -> Table:
    """Functions of packages by which these register what they bring."""
    columns = ("function", "package", "version", "group", "status", "registers", "cause")
    cells = [
        (row.entry_point, row.distribution, row.version, row.group, row.status,
         UNKNOWN if row.status == "unknown" else ", ".join((*row.architectures, *row.also)), row.cause)
        for row in rows
    ]  # fmt: skip
    return Table("registered by functions", columns, cells)


def plugin_table(rows: list[PluginRow]) -> Table:
    columns = ("architecture", "package", "version", "api", "status", "official", "capabilities", "certificate",
               "cause")  # fmt: skip
    return Table("architectures", columns, [_plugin_cells(row) for row in rows])


def _plugin_cells(row: PluginRow) -> tuple[str, ...]:
    cause = row.cause or ("" if row.status != "malformed" else row.path)
    official = "official" if row.official else ""
    return (row.architecture, row.distribution, row.version, row.api_version, row.status, official,
            capabilities(row), "" if row.certificate is None else str(row.certificate),
            "; ".join(part for part in (cause, *row.details) if part))  # fmt: skip


def capabilities(row: PluginRow) -> str:
    """``"text_generation,lora,pp"``; "?" where nobody has looked. An alias says before it what it is one of."""
    if row.status == "ok" and row.kind == "alias":
        of = UNKNOWN if row.alias_of is None else f"{row.alias_of} ({row.target})"
        return f"alias of {of}: {_of_class(row)}"
    return _of_class(row)


def _of_class(row: PluginRow) -> str:
    if row.info is None:
        return UNKNOWN if row.status == "ok" else ""
    return ",".join([*row.info.categories, *(name for name in _CAPABILITIES if getattr(row.info, name))])


def short_names() -> list[dict[str, Any]]:
    """Models that a package carries: found through its metadata, never by importing it."""
    from bestiary.engine.loader.sources import ShortNames

    source = ShortNames()
    found = []
    for name, entry in source.table.items():
        try:
            path, install = source.locate(name), None
        except ModelError as error:
            path, install = None, error.fix
        found.append(
            {
                "name": name,
                "package": entry.distribution,
                "version": entry.version,
                "bytes": entry.bytes,
                "licence": entry.licence,
                "path": None if path is None else str(path),
                "install": install,
            }
        )
    return found


def installable(known: set[str]) -> list[dict[str, Any]]:
    """Packages of the shipped index with architectures that nothing installed claims."""
    packages: dict[str, list[str]] = {}
    for architecture, package in index.packages().items():
        if architecture not in known:
            packages.setdefault(package, []).append(architecture)
    return [
        {"package": package, "architectures": names, "install": f"pip install {package}"}
        for package, names in packages.items()
    ]


def _short_name_table(names: list[dict[str, Any]]) -> Table:
    rows = [
        (each["name"], each["package"], size(each["bytes"]), each["licence"], each["install"] or "installed")
        for each in names
    ]
    return Table("short names", ("name", "package", "size", "licence", "status"), rows)


def _installable_table(offers: list[dict[str, Any]]) -> Table:
    rows = [(each["package"], each["install"], ",".join(each["architectures"])) for each in offers]
    return Table("can be installed", ("package", "command", "architectures"), rows)
