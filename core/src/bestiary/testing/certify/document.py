"""The certificate: what was looked at, with what, and what came of it, as data with stable names.

Verdicts, the first that holds: `broken` (something could not be looked at: an import that fails, a crash, a hang),
`failed` (a check did not hold), `incomplete` (an architecture has no contract, or a contract no configuration),
`partial` (only some checks were asked for, and they hold), `certified`.
"""

from __future__ import annotations

import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import importlib_metadata

from bestiary import __version__
from bestiary.api import certificates, record, version
from bestiary.api.errors import UsageError

from . import MADE_HERE
from .target import Subject
from .watch import CheckResult, Outcome

Verdict = Literal["certified", "failed", "broken", "incomplete", "partial"]
EXIT_CODES: dict[str, int] = {"certified": 0, "partial": 0, "failed": 1, "broken": 3, "incomplete": 4}
NO_CONTRACT = "it has no contract"

_STATUSES = ("passed", "failed", "given_up", "skipped", "not_run")


def document(subject: Subject, outcome: Outcome, *, partial: bool, readme: dict[str, Any] | None) -> dict[str, Any]:
    """The certificate. partial: not all checks of the distribution were asked for. readme: `readme_state`'s."""
    rows = _architectures(subject, outcome)
    unchecked = _unchecked(subject, outcome)
    strangers = sorted({one.architecture for one in outcome.contracts} - set(subject.registered))
    problems = [
        *outcome.problems,
        *(f"{name}: there is a contract for it, and the distribution does not register it" for name in strangers),
    ]
    counts = Counter[str](one.status for one in outcome.checks)
    distribution = subject.distribution
    return {
        "schema": certificates.SCHEMA,
        "verdict": _verdict(
            outcome, problems=problems, failed=counts["failed"] > 0, unchecked=unchecked, partial=partial
        ),
        "target": subject.target,
        "kind": subject.kind,
        "distribution": distribution.name,
        "version": distribution.version,
        "record": record.content_digest(distribution),
        "api": list(distribution.api_versions),
        "core": __version__,
        "core_api": version.text(version.API_VERSION),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 1),
        "counts": {name: counts[name] for name in _STATUSES},
        "problems": problems,
        "unchecked": unchecked,
        "readme": readme,
        "architectures": rows,
    }


def _verdict(
    outcome: Outcome, *, problems: list[str], failed: bool, unchecked: dict[str, str], partial: bool
) -> Verdict:
    if problems or outcome.ended is not None:
        return "broken"
    if failed:
        return "failed"
    if unchecked:
        return "incomplete"
    return "partial" if partial else "certified"


def _architectures(subject: Subject, outcome: Outcome) -> list[dict[str, Any]]:
    """One a contract, then what has none, by architecture; a second name has the contract of the first."""
    found = {one.contract: one for one in outcome.contracts}
    declared = {one.architecture for one in outcome.contracts if not one.contract.startswith(MADE_HERE)}
    seconds = subject.second_names(dict.fromkeys(declared))
    rows = [
        {
            "architecture": one.architecture,
            "contract": None if label.startswith(MADE_HERE) else label,
            "second_name_of": seconds.get(one.architecture),
            "claims": outcome.claims.get(one.architecture, []),
            "checks": [_check(each) for each in outcome.of(label)],
        }
        for label, one in found.items()
    ]
    return sorted(rows, key=lambda row: (str(row["architecture"]), str(row["contract"])))


def _check(one: CheckResult) -> dict[str, Any]:
    return {
        "check": one.check,
        "variant": one.variant or None,
        "status": one.status,
        "seconds": one.seconds,
        "message": one.message,
    }


def _unchecked(subject: Subject, outcome: Outcome) -> dict[str, str]:
    """Architecture → why its behaviour has not been looked at."""
    declared = {one.architecture: one for one in outcome.contracts if not one.contract.startswith(MADE_HERE)}
    covered = {**declared, **subject.second_names(declared)}
    states: dict[str | None, str] = {None: NO_CONTRACT}
    states |= {one.contract: f"its contract is one of {one.architecture}" for one in outcome.contracts}
    found = {
        name: states.get(subject.contracts.get(name), "its contract cannot be used")
        for name in subject.architectures
        if name not in covered
    }
    bare = {name: "its contract has no config" for name, one in declared.items() if not one.configured}
    return dict(sorted((found | bare).items()))


def readme_state(subject: Subject, outcome: Outcome, *, write: bool) -> dict[str, Any] | None:
    """Whether the support table in the project's README is the contracts'. None where the target is no project.

    `state` is "current", "stale", "written" (just now), or "none" (no README, no markers, no contract). write: put the
    table there, unless a check failed.

    Raises:
        UsageError: the README's markers are not a pair; or the table is to be written and has no place.
    """
    from bestiary.testing.table import table_in, write_table

    if subject.folder is None:
        return None
    path = _readme(subject.folder)
    if outcome.table is None or not path.is_file():
        return {"state": "none", "path": str(path)}
    if write and all(one.status != "failed" for one in outcome.checks) and outcome.ended is None:
        return {"state": "written" if write_table(path, outcome.table) else "current", "path": str(path)}
    present = table_in(path)
    state = "none" if present is None else "current" if present == outcome.table.strip() else "stale"
    return {"state": state, "path": str(path)}


def settle_readme(outcome: Outcome, readme: dict[str, Any] | None, command: str) -> None:
    """Give the contracts' own check `readme` its result: the child saw a wheel, and no README."""
    if readme is None or readme["state"] == "none":
        return
    for one in outcome.checks:
        if one.check == "readme" and one.status == "skipped":
            stale = readme["state"] == "stale"
            one.status = "failed" if stale else "passed"
            one.message = f"the README's table is not what the contracts check: {command}" if stale else ""


def _readme(folder: Path) -> Path:
    from .wheel import project

    stated = project(folder).get("project", {}).get("readme", "README.md")
    name = stated.get("file", "README.md") if isinstance(stated, dict) else stated
    path: Path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UsageError("the project's README lies outside of its folder", field="readme", value=name)
    return path


def _version(name: str) -> str | None:
    try:
        return importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
        return None


def keep(found: dict[str, Any]) -> Path | None:
    """Keep a certificate for the listings, if it is of a whole distribution."""
    whole = found["verdict"] != "partial" and found["kind"] != "architecture"
    return certificates.keep(found) if whole else None
