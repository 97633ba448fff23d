"""Writes docs/reliability/README.md out of the newest record of each programme: `scripts/reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.trust.cases import CLIENTS, PROGRAMMES, Programme
from tests.trust.hostile.kinds import KINDS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reliability"
PAGE = FOLDER / "README.md"
ALL: Mapping[str, Programme] = {**PROGRAMMES, "clients": CLIENTS}
Record = Mapping[str, Any]
HEAD = """\
# Reliability

What the engine and the server promise, tried: `scripts/trust PROGRAMME` runs a programme, and with `--record` it leaves
what it found here. `scripts/reference` writes this page from the newest record of each. [Tests](../testing.md) tells
what runs when, the [threat model](../threat-model.md) what is defended against whom.

{headline}

Inputs are requests, faults, programs, messages or whatever is tried one by one; passed and failed are tests, which try
many. Of what was measured in several tests the least and the most are given, of those with the most inputs; what was
counted is added up. The tiers are `fast`, `full` and `soak`, each with the tests of those before it.
"""


def page(folder: Path = FOLDER) -> str:
    records = newest(folder)
    parts = [HEAD.format(headline=headline(records))]
    for name, programme in ALL.items():
        parts.append("\n".join(section(name, programme, records.get(name))))
    return "\n".join(parts)


def newest(folder: Path) -> dict[str, Record]:
    """Programme → its record of the latest day."""
    found = (json.loads(path.read_text("utf-8")) | {"file": path.name} for path in sorted(folder.glob("*.json")))
    return {record["programme"]: record for record in found}


def headline(records: Mapping[str, Record]) -> str:
    """One sentence, with as much of it as there are records."""
    said = [
        words
        for name, words in (
            ("hostile", f"{_tried(records, 'hostile', KINDS)} kinds of hostile input ({_inputs(records, 'hostile')})"),
            ("faults", f"{_tried(records, 'faults')} kinds of fault ({_inputs(records, 'faults')})"),
            ("load", f"{_inputs(records, 'load')} requests under load"),
            ("leaks", f"{_inputs(records, 'leaks')} requests watched for leaks{_kept_of_each(records)}"),
            ("exactness", f"{_inputs(records, 'exactness', 'EX7')} random programs compared token by token"),
            ("frames", f"{_inputs(records, 'frames')} damaged messages"),
            ("clients", f"{_inputs(records, 'clients')} uses of other people's clients"),
        )
        if name in records
    ]
    if not said:
        return "No run is recorded yet."
    tests = [record["tests"] for record in records.values()]
    failed, run = sum(each["failed"] for each in tests), sum(each["passed"] + each["failed"] for each in tests)
    return f"**{'; '.join(said)}: {failed or 'none'} of {run:,} tests failed.**"


def _tried(records: Mapping[str, Record], name: str, among: Mapping[str, str] | None = None) -> int:
    cases = records.get(name, {"cases": {}})["cases"]
    return sum(bool(case["passed"] or case["failed"]) for id_, case in cases.items() if among is None or id_ in among)


def _inputs(records: Mapping[str, Record], name: str, id_: str | None = None) -> str:
    record = records.get(name, {"cases": {}, "inputs": 0})
    return f"{record['inputs'] if id_ is None else record['cases'].get(id_, {'inputs': 0})['inputs']:,}"


def _kept_of_each(records: Mapping[str, Record]) -> str:
    """The most that any process kept of a request of LK1."""
    figures = records.get("leaks", {"cases": {}})["cases"].get("LK1", {"figures": {}})["figures"]
    slopes = [limits[1] for name, limits in figures.items() if name.endswith("kib_per_request")]
    return f" (at most {max(0.0, *slopes):.2g} KiB kept of each)" if slopes else ""


def section(name: str, programme: Programme, record: Record | None) -> Iterator[str]:
    yield f"## {programme.title}\n"
    if record is None:
        yield f"No run is recorded: `scripts/trust {name} --tier full --record`.\n"
        return
    where = record["environment"]
    versions = ", ".join(f"{package} {where['versions'][package]}" for package in ("torch", "transformers"))
    yield (
        f"`{record['command']}` ([record]({record['file']})): {record['date']}, {record['seconds']:,} s on "
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB; Python {where['python']}, {versions}; "
        f"commit `{where['commit']}`.\n"
    )
    yield "| | what | inputs | passed | failed | figures |\n|---|---|---|---|---|---|"
    for id_ in dict.fromkeys([*programme.cases, *record["cases"]]):
        yield row(id_, programme.cases.get(id_, ""), record["cases"].get(id_))
    if record["failures"]:
        yield "\n**Failed:** " + ", ".join(f"`{node}`" for node in record["failures"]) + "."
    yield f"\nNot covered: {programme.not_covered}\n"


def row(id_: str, what: str, case: Record | None) -> str:
    if case is None:
        return f"| {id_} | {what} | | | | not in this tier |"
    failed = f"**{case['failed']}**" if case["failed"] else "0"
    skipped = {"skipped": case["skipped"]} if case.get("skipped") else {}
    figures = "; ".join(figure(name, value) for name, value in (skipped | case["figures"]).items())
    inputs = f"{case['inputs']:,}" if case["inputs"] else ""
    return " | ".join(["| " + id_, what, inputs, str(case["passed"]), failed, f"{figures} |"]).replace("  ", " ")


def figure(name: str, value: Any) -> str:
    """`value`: a count, the least and the most, or several by name."""
    if isinstance(value, dict):
        value = ", ".join(figure(each, more) for each, more in value.items())
    if isinstance(value, list):
        least, most = (f"{each:,.4g}" for each in value)
        value = least if least == most else f"{least} to {most}"
    return f"{name.replace('_', ' ')} {value}"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
