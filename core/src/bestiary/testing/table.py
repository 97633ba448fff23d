"""The table of what an architecture's contract checks, for a package's README.

It stands between two comment lines, `BEGIN` and `END`; the check `readme` compares it, `write_table` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.api.errors import UsageError

from .check import GIVEN_UP, Check, why_skipped

if TYPE_CHECKING:
    from .base import ContractBase

BEGIN = "<!-- supported: begin -->"
END = "<!-- supported: end -->"
_YES, _NO = "✓", "–"


def support_table(contracts: Sequence[type[ContractBase]]) -> str:
    """Markdown: a row for each check, a column for each architecture; then reasons for what is given up, and variants.

    ✓ is checked, – does not apply, a number in brackets points to the reason why a check is given up.
    """
    ordered = sorted(contracts, key=lambda contract: contract.architecture)
    reasons: list[str] = []
    rows = [["checked", *(f"`{contract.architecture}`" for contract in ordered)]]
    for known in _union(ordered):
        rows.append([known.summary, *(_cell(contract, known, reasons) for contract in ordered)])
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    lines += _listed("", (f"[{number}] {reason}" for number, reason in enumerate(reasons, 1)))
    return "\n".join([*lines, *_listed("Variants of the configuration, each compared by itself:", _variants(ordered))])


def _listed(title: str, items: Iterable[str]) -> list[str]:
    found = [f"- {item}" for item in items]
    return ["", *([title, ""] if title else []), *found] if found else []


def _variants(contracts: Sequence[type[ContractBase]]) -> Iterator[str]:
    for contract in contracts:
        if contract.variants:
            yield f"`{contract.architecture}`: {', '.join(contract.variants)}"


def _union(contracts: Sequence[type[ContractBase]]) -> list[Check]:
    return list({known.name: known for contract in contracts for known in contract._checks() if known.listed}.values())


def _cell(contract: type[ContractBase], known: Check, reasons: list[str]) -> str:
    if known.name not in contract.checks():
        return _NO
    skipped = why_skipped(contract, known)
    if skipped is None:
        return _YES
    if not skipped.startswith(GIVEN_UP):
        return _NO
    reason = skipped.removeprefix(GIVEN_UP).strip()
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"


def table_in(readme: Path) -> str | None:
    """What stands between the markers; None where `readme` has none.

    Raises:
        UsageError: one marker without the other, twice, or in the wrong order.
    """
    text = readme.read_text(encoding="utf-8")
    counts = text.count(BEGIN), text.count(END)
    if counts == (0, 0):
        return None
    if counts != (1, 1) or text.index(BEGIN) > text.index(END):
        raise UsageError(
            "the README's markers are not a pair", field=readme.name, value=counts, limit=f"one {BEGIN}, then one {END}"
        )
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def write_table(readme: Path, table: str) -> bool:
    """Puts `table` between the markers; returns whether that changed anything.

    Raises:
        UsageError: there are no markers, or they are not a pair.
    """
    if table_in(readme) is None:
        raise UsageError(
            "the README has no place for the table", field=readme.name, limit=f"the lines {BEGIN} and {END}",
            fix="write the two lines where the table is to be",
        )  # fmt: skip
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    made = f"{before}{BEGIN}\n{table.strip()}\n{END}{rest.partition(END)[2]}"
    if made != text:
        readme.write_text(made, encoding="utf-8")
    return made != text
