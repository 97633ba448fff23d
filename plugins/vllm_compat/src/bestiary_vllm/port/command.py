"""`bestiary port FILE_OR_PACKAGE`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from bestiary.api.distributions import normalise
from bestiary.api.errors import BrokenPlugin

_NEEDS_EXIT = 3
_HOW = {"at once": "", "later": ", not when the model is imported", "optional": ", which the file does without"}


@click.command()
@click.argument("target", metavar="FILE_OR_PACKAGE", type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="Where to write the project.  "
              "[default: its name, here]")  # fmt: skip
@click.option("--name", help="The project's name on the index.  [default: ported-NAME]")
@click.option("--architecture", "wanted", multiple=True, metavar="NAME[=CLASS]",
              help="The name in config.json, and its class; repeatable.  "
              "[default: what is registered, or defined]")  # fmt: skip
@click.option("--certify/--no-certify", default=True, help="Check what was written.  [default: certify]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def port(
    target: Path, into: Path | None, name: str | None, wanted: tuple[str, ...], certify: bool, as_json: bool
) -> int:
    """Put a plugin project around model files written for vLLM, which stay as they are.

    FILE_OR_PACKAGE is a model file, which is read as one of vLLM's own with those that lie beside it, or a package's
    folder. Nothing of it is imported before `certify` does. What it needs of vLLM is looked up in the table of what is
    served, and said.

    \b
    Exit codes:
      0  written, and certified unless --no-certify
      1  written, and a check of the certificate failed
      2  FILE_OR_PACKAGE is no Python, or holds no model
      3  written, but something that it needs is not served, or a package is not installed
    """
    from .classes import architectures, registrars
    from .gathering import gather
    from .needs import needs_of
    from .project import Project

    gathered = gather(target)
    _say(f"reading {len(gathered.sources)} file{'s' if len(gathered.sources) != 1 else ''}")
    found = architectures(gathered.first, wanted)
    _say("looking up what they need")
    needs = needs_of(gathered, [module for module, _ in found.values()])
    stem = gathered.folder.name if gathered.folder is not None else target.stem
    distribution = normalise(name or f"ported-{stem}")
    package = stem if gathered.folder is not None else distribution.replace("-", "_")
    folder = into or Path(distribution)
    project = Project(
        folder=folder,
        distribution=distribution,
        package=package,
        gathered=gathered,
        architectures=found,
        registrars=registrars(gathered.first),
        needs=needs,
    )
    _say(f"writing {folder}")
    document: dict[str, Any] = {
        "project": str(folder),
        "files": project.write(),
        "architectures": {each: f"{project.module(module)}:{cls}" for each, (module, cls) in found.items()},
        "needs": [need.as_dict() for need in needs],
        "certificate": None,
        "not_certified": None,
    }
    missing = [need for need in needs if need.is_missing]
    code = _NEEDS_EXIT if missing else 0
    document["not_certified"] = _why_not(document, certify=certify, missing=bool(missing))
    if document["not_certified"] is None:
        _say("certifying it: a wheel is built, and every check of the contract made")
        code, document["certificate"] = _certified(folder)
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _report(document)
    return code


def _say(line: str) -> None:
    click.echo(line, err=True)


def _why_not(document: dict[str, Any], *, certify: bool, missing: bool) -> str | None:
    """Why the project is not certified now."""
    from .skeleton import tiny_config

    if missing:
        return "something that it needs is missing"
    unknown = [name for name in document["architectures"] if tiny_config(name) is None]
    if unknown:
        return f"transformers has no {', '.join(unknown)}: give its contract a configuration and a reference first"
    return None if certify else "--no-certify"


def _certified(folder: Path) -> tuple[int, Any]:
    """The exit code and the document of `bestiary certify`, in a process of its own.

    Raises:
        BrokenPlugin: it ended without an answer.
    """
    command = [sys.executable, "-m", "bestiary.serve.cli.main", "certify", str(folder), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BrokenPlugin(
            f"bestiary certify ended with {done.returncode} and no answer", details=lines[-8:],
            fix=f"bestiary certify {folder}",
        ) from None  # fmt: skip


def _report(document: dict[str, Any]) -> None:
    """For people: what is needed, by its state; what was written; what the certificate says."""
    needs = document["needs"]
    for state in dict.fromkeys(need["state"] for need in needs):
        of_it = [need for need in needs if need["state"] == state]
        click.echo(f"\n{state} ({len(of_it)})")
        for need in of_it:
            _report_need(need)
    click.echo(f"\n{document['project']}")
    for path in document["files"]:
        click.echo(f"  {path}")
    for name, value in document["architectures"].items():
        click.echo(f"{name} is {value}")
    if document["not_certified"] is not None:
        click.echo(f"\nnot certified: {document['not_certified']}")
    elif document["certificate"] is not None:
        _report_certificate(document["certificate"])
    click.echo(f"next: pip install -e {document['project']}")


def _report_need(need: dict[str, Any]) -> None:
    why = f": {need['why']}" if need["why"] else ""
    click.echo(f"  {need['name']}{why}{_HOW[need['how']]}  [{', '.join(need['places'][:3])}]")
    for keyword in need["unknown_keywords"]:
        click.echo(f"    is given {keyword}=, which is not taken here")


def _report_certificate(found: dict[str, Any]) -> None:
    if "error" in found:
        click.echo(f"\nnot certified: {found['error'].get('message', found['error'])}")
        return
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in found["counts"].items() if number)
    click.echo(f"\n{found['verdict']}: {counts}")
    failed: dict[str, list[str]] = {}
    for row in found["architectures"]:
        for check in row["checks"]:
            if check["status"] == "failed":
                failed.setdefault(str(check["message"]).partition("\n")[0], []).append(check["check"])
    for message, checks in failed.items():
        click.echo(f"  {message}  [{', '.join(dict.fromkeys(checks))}]")
