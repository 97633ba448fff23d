"""`bestiary doctor`: this installation and this machine, with the cause of everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bestiary.api.registrars import RegistrarRow
from bestiary.api.registry import ModelRegistry
from bestiary.api.rows import PluginRow

from . import machine
from .config_files import PROJECT
from .kinds import PAIR
from .models import plugin_table, registrar_table
from .options import debug_option, json_option
from .output import Table, collected_notices, pairs, show, write_json
from .settings import settings_of, with_project_plugins

STRICT_EXIT = 3


@click.command()
@click.option("--strict", is_flag=True, help="Exit with 3 if anything is wrong; otherwise doctor exits with 0.")
@click.option("--probe/--no-probe", default=True, help="Import each plugin in a child process.  [default: probe]")
@click.option("--plugin", type=PAIR, multiple=True, metavar="ARCHITECTURE=DISTRIBUTION", help="As for generate.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@json_option
@debug_option
def doctor(strict: bool, probe: bool, plugin: tuple[tuple[str, str], ...], device: str, as_json: bool) -> int:
    """Check this installation and this machine, and show the cause of every problem.

    Finding problems is what doctor is for, so it exits with 0 whether or not there are any; --strict exits with 3.
    """
    with collected_notices() as notices:
        document, rows = examine(with_project_plugins(dict(plugin)), device, probe=probe)
    document["problems"] += [text for text in notices if text not in document["problems"]]
    if as_json:
        write_json(document)
    else:
        show(_tables(document, rows))
    return STRICT_EXIT if strict and document["problems"] else 0


def examine(plugin: dict[str, str], device: str, *, probe: bool) -> tuple[dict[str, Any], list[PluginRow]]:
    """All sections as data, and the plugins' rows. A section that cannot be had is None, its cause among `problems`."""
    problems: list[str] = []

    def section(name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:  # one broken part must not hide the others
            problems.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
            return None

    rows: list[PluginRow] = section(
        "plugins", lambda: ModelRegistry.list("run" if probe else "cached", verify=True, plugins=plugin)
    ) or []  # fmt: skip
    registrars = section("registrars", ModelRegistry.list_registrars) or []
    hooks = section("hooks", lambda: machine.load_hooks(plugin))
    hook_rows = [] if hooks is None else hooks.rows
    backends = section("attention backends", lambda: machine.attention_backends(device, hooks))
    document: dict[str, Any] = {
        "versions": section("versions", machine.versions),
        "cpu": section("cpu", machine.cpu),
        "memory": section("memory", machine.memory),
        "cuda_devices": section("cuda", machine.cuda_devices),
        "ops": section("ops", lambda: machine.ops(device, hooks)),
        "kernels": section("kernels", lambda: machine.kernels(device, hooks, backends)),
        "attention_backends": backends,
        "quantization_methods": section("quantization methods", lambda: machine.quantization_methods(device, hooks)),
        "hooks": [{name: getattr(row, name) for name in row.__slots__} for row in hook_rows],
        "plugins": [row.as_dict() for row in rows],
        "registrars": [row.as_dict() for row in registrars],
        "plugin_choices": section("plugin choices", lambda: plugin_choices(plugin)),
        "directories": section("directories", machine.directories),
    }
    problems += [
        f"{row.architecture or row.distribution}: {row.status}: {row.cause}" for row in rows if row.status != "ok"
    ]
    problems += [
        f"{row.entry_point} of {row.distribution}: {row.cause}" for row in registrars if row.status == "broken"
    ]
    changed = sorted({row.distribution for row in rows if row.record == "modified"})
    problems += [
        f"{name}: installed files differ from its RECORD: pip install --force-reinstall {name}" for name in changed
    ]
    problems += [f"hooks {row.entry_point}: {row.status}: {row.cause}" for row in hook_rows if row.status != "ok"]
    offered = {row.architecture for row in rows} | {offer for row in hook_rows for offer in row.offers}
    problems += [
        f"{each['from']} chooses {each['distribution']} for {each['name']}, which nothing installed offers"
        for each in document["plugin_choices"] or [] if each["name"] not in offered
    ]  # fmt: skip
    unwritable = [each for each in document["directories"] or [] if not each["writable"]]
    problems += [f"{each['what']} cannot be written: {each['path']}" for each in unwritable]
    return document | {"problems": problems}, rows


def plugin_choices(arguments: dict[str, str]) -> list[dict[str, str]]:
    """Every choice in force and the place it comes from."""
    from bestiary.api import choices

    environment = choices.from_environment()
    project = settings_of(click.get_current_context(silent=True)).plugins()
    found = []
    for name, distribution in sorted(choices.current(arguments).items()):
        if name in arguments:
            place = PROJECT if project.get(name) == distribution else "--plugin"
        else:
            place = choices.ENVIRONMENT if name in environment else str(choices.config_path())
        found.append({"name": name, "distribution": distribution, "from": place})
    return found


def _tables(found: dict[str, Any], rows: list[PluginRow]) -> list[Table]:
    records = dict.fromkeys((row.distribution, row.version, row.record, row.path) for row in rows)
    return [
        pairs("versions", list((found["versions"] or {}).items())),
        pairs("machine", [*(found["cpu"] or {}).items(), *(found["memory"] or {}).items()]),
        Table("CUDA devices", ("device", "capability", "memory"),
              [tuple(map(str, each.values())) for each in found["cuda_devices"] or []]),
        pairs("kernels", _kernels(found["kernels"] or {})),
        Table("ops", ("op", "chosen", "others"),
              [(each["op"], each["chosen"], _reasons({name: why or "can run" for name, why in each["others"].items()}))
               for each in found["ops"] or []]),
        Table("attention backends", ("backend", "state", "cannot run"),
              [(each["backend"], each["state"], _reasons(each["cannot"]))
               for each in found["attention_backends"] or []]),
        Table("quantization methods", ("method", "plain weights", "runs here"),
              [(each["method"], "quantizes them" if each["while_loading"] else "reads its checkpoints",
                each["cannot_run"] or "yes") for each in found["quantization_methods"] or []]),
        Table("hooks", ("package", "version", "module", "status", "offers", "cause"),
              [(each["distribution"], each["version"], each["entry_point"], each["status"], ",".join(each["offers"]),
                each["cause"]) for each in found["hooks"]]),
        plugin_table(rows),
        registrar_table([RegistrarRow(**each) for each in found["registrars"]]),
        Table("installed files", ("package", "version", "record", "path"), [tuple(map(str, each)) for each in records]),
        Table("plugin choices", ("name", "package", "from"),
              [tuple(each.values()) for each in found["plugin_choices"] or []]),
        Table("directories", ("what", "writable", "path"),
              [(each["what"], "yes" if each["writable"] else "no", each["path"])
               for each in found["directories"] or []]),
        Table("problems", ("problem",), [(text,) for text in found["problems"]] or [("none",)]),
    ]  # fmt: skip


def _kernels(found: dict[str, Any]) -> list[tuple[str, object]]:
    rows = [(name.replace("_", " ") if name.islower() else name, found[name]) for name in found if name != "libraries"]
    for recorder, facts in found.get("libraries", {}).items():
        rows += [(f"{recorder}: {name.replace('_', ' ')}", value) for name, value in facts.items()]
    return rows


def _reasons(reasons: dict[str, str]) -> str:
    """By the reason: of which kinds of layer it holds."""
    kinds: dict[str, list[str]] = {}
    for kind, reason in reasons.items():
        kinds.setdefault(reason, []).append(kind)
    return "; ".join(f"{', '.join(each)}: {reason}" for reason, each in kinds.items())
