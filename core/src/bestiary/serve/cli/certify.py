"""`bestiary certify`: an architecture's contract, checked as it would be published, and the certificate."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from bestiary.api import distributions
from bestiary.api.errors import UsageError

from .options import debug_option, json_option
from .output import Table, clean, say, show, write_json

if TYPE_CHECKING:
    from bestiary.testing.certify.watch import CheckResult, Outcome

TESTING = "pip install 'bestiary[testing]'"
_WORDS = {"passed": "ok", "failed": "FAILED", "given_up": "given up", "skipped": "does not apply", "not_run": "not run"}
_COUNTED = {"failed": "failed", "not_run": "not run", "given_up": "given up", "skipped": "do not apply"}
_STYLES = {"passed": "green", "failed": "bold red", "given_up": "yellow", "skipped": "dim", "not_run": "yellow"}


def complete_target(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files first (see `options`), then what is installed."""
    from bestiary.api.registry import ModelRegistry

    plugins = ModelRegistry.installation.plugins
    named = {one.name: one.version for one in plugins if one.group(distributions.MODELS)}
    named |= {entry.name: one.name for one in plugins for entry in one.group(distributions.MODELS)}
    found = [CompletionItem(name, help=words) for name, words in named.items() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *found]


def complete_check(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if importlib.util.find_spec("pytest") is None:
        return []
    from bestiary.testing import ModelContract

    checks = ModelContract.checks()
    return [CompletionItem(name, help=line) for name, line in checks.items() if name.startswith(incomplete)]


@click.command()
@click.argument("target", shell_complete=complete_target)
@click.option(
    "--check", "checks", multiple=True, metavar="NAME", shell_complete=complete_check,
    help="Make only this check; repeatable.",
)  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the certificate to this file.")
@click.option("--write-readme", is_flag=True, help="Write the table of what is checked into the project's README.")
@click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds for all checks.")
@json_option
@debug_option
def certify(
    target: str, checks: tuple[str, ...], output: Path | None, write_readme: bool, timeout: float, as_json: bool
) -> int:
    """Check that a plugin does what its contract says.

    TARGET is a project folder, a wheel, an installed distribution or an architecture. A folder is built into a wheel
    and a wheel is unpacked, so that what is checked is what would be published.

    \b
    Exit codes:
      0  certified: every check of every architecture's contract passed or is given up with a reason
      1  a check failed, or the README's table is not the contract's
      2  TARGET is no plugin, cannot be built, or cannot be unpacked
      3  the plugin is broken: it does not import, crashes, or hangs
      4  an architecture has no contract: its behaviour is not checked
    """
    require_testing("certify")
    from bestiary.testing.certify import document, watch
    from bestiary.testing.certify.target import resolve

    with tempfile.TemporaryDirectory(prefix="bestiary-certify-") as folder:
        workspace = Path(folder)
        subject = resolve(target, workspace, timeout_s=timeout, say=say)
        if write_readme and subject.folder is None:
            raise UsageError("only a project folder has a README to write", field="--write-readme", value=target)
        with _progress() as progress:
            outcome = watch.run(subject, workspace, checks=checks, timeout_s=timeout, on_change=progress)
        readme = None
        if write_readme or not checks or "readme" in checks:
            readme = document.readme_state(subject, outcome, write=write_readme)
            document.settle_readme(outcome, readme, f"bestiary certify {target} --write-readme")
        partial = bool(checks) or subject.only is not None
        found = document.document(subject, outcome, partial=partial, readme=readme)
    document.keep(found)
    if output is not None:
        _write(output, found)
    if as_json:
        write_json(found)
    else:
        _report(found)
    return document.EXIT_CODES[found["verdict"]]


def require_testing(command: str) -> None:
    """Raises UsageError where the packages that the conformance kit needs are missing."""
    missing = [name for name in ("pytest", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{command} needs {' and '.join(missing)}, not installed here", fix=TESTING)


def _write(path: Path, found: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the certificate cannot be written: {error.strerror}", field="--output", value=str(path)
        ) from error


@contextmanager
def _progress() -> Iterator[Any]:
    """A function to be called when something has happened. On a terminal: a line a finished check, and what is
    running now; elsewhere nothing, the report says it all."""
    if not sys.stderr.isatty():
        yield lambda outcome: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    shown: set[int] = set()
    with console.status("collecting the checks") as status:

        def update(outcome: Outcome) -> None:
            for each in outcome.checks:
                if each.status != "not_run" and id(each) not in shown:
                    shown.add(id(each))
                    console.print(Text(f"{_WORDS[each.status]:<14}", _STYLES[each.status]), Text(_progress_line(each)))
            if outcome.running is not None:
                status.update(Text(f"{len(shown) + 1}/{len(outcome.checks)} {clean(_called(outcome.running))}"))

        yield update


def _progress_line(one: CheckResult) -> str:
    return f"{one.seconds:6.1f} s  {clean(_called(one))}"


def _called(one: CheckResult) -> str:
    return f"{one.contract.rpartition(':')[2]} {one.name}"


def _report(found: dict[str, Any]) -> None:
    """For people: a table an architecture, then what failed at length, then the verdict."""
    from bestiary.testing.certify.document import NO_CONTRACT

    show([_table(row, found["unchecked"]) for row in found["architectures"]])
    for row in found["architectures"]:
        for first, *others in _alike(check for check in row["checks"] if check["status"] == "failed"):
            print(f"\n# {row['architecture']}: {_name(first)} failed\n{clean(first['message'])}")
            if others:
                print(f"  the same: {', '.join(_name(check) for check in others)}")
    for problem in found["problems"]:
        print(f"\n# problem\n{clean(problem)}")
    print()
    for name, why in found["unchecked"].items():
        print(f"unchecked: {name}: {why}, so nothing is known of its behaviour")
    if NO_CONTRACT in found["unchecked"].values():
        print("           a contract is a class of a few lines: bestiary.testing.ModelContract, declared in the entry")
        print(f"           points {distributions.CONTRACTS}; `bestiary new` writes one to look at")
    if found["readme"] is not None and found["readme"]["state"] == "written":
        print(f"readme: the table was written to {os.path.basename(found['readme']['path'])}")
    print(clean(_last_line(found)))


def _alike(failed: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The checks that failed for one reason together, in the order of the first of each.

    The reason is an error's last words, whichever way led there; otherwise all but the line on how to see it again.
    """
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for check in failed:
        lines = [line for line in str(check["message"]).splitlines() if not line.startswith("  look: ")]
        error = [line for line in lines if line.startswith("E ")]
        found.setdefault(tuple(error or lines), []).append(check)
    return list(found.values())


def _table(row: dict[str, Any], unchecked: dict[str, str]) -> Table:
    second, why = row["second_name_of"], unchecked.get(row["architecture"], "it has no contract")
    about = row["contract"] or (f"second name of {second}" if second else f"{why}: checked without a model")
    claims = f"; claims {', '.join(row['claims'])}" if row["claims"] else ""
    lines = [
        (_name(check), _WORDS[check["status"]], f"{check['seconds']:.1f}", _first_line(check))
        for check in row["checks"]
    ]
    return Table(f"{row['architecture']} ({about}{claims})", ("check", "result", "seconds", "why"), lines)


def _name(check: dict[str, Any]) -> str:
    return f"{check['check']}[{check['variant']}]" if check["variant"] else str(check["check"])


def _first_line(check: dict[str, Any]) -> str:
    return str(check["message"]).partition("\n")[0]


def _last_line(found: dict[str, Any]) -> str:
    counts = found["counts"]
    total = counts["passed"] + counts["failed"] + counts["not_run"]
    extra = [f"{counts[name]} {words}" for name, words in _COUNTED.items() if counts[name]]
    more = f" ({', '.join(extra)})" if extra else ""
    what = f"{found['distribution']} {found['version']}"
    return f"{found['verdict']}: {what}: {counts['passed']} of {total} checks passed{more}, in {found['seconds']:.0f} s"
