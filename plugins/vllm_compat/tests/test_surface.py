"""The names that half of vLLM 0.33's decoder-only model files need (T50), and four fifths (T80): `surface.csv`."""

import csv
from pathlib import Path

from bestiary_vllm import table

SURFACE = Path(__file__).with_name("surface.csv")


def state(symbol: str) -> str | None:
    """Whether a symbol is served, why it is not, or None where the table has never heard of it."""
    module, _, name = symbol.partition(":")
    if not name:
        return "served" if module in table.modules() else None
    found = table.find(module, name)
    return None if found is None else found.why_not or "served"


def test_every_symbol_is_served_or_says_why_not():
    with SURFACE.open(encoding="utf-8") as file:
        states = {row["symbol"]: state(row["symbol"]) for row in csv.DictReader(file)}
    assert [symbol for symbol, known in states.items() if known is None] == []
    assert sum(known == "served" for known in states.values()) >= len(states) - 3
