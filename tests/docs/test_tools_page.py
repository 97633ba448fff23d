"""The page on tools names every family that is known."""

from __future__ import annotations

import re
from pathlib import Path

from bestiary.serve.text.parsers.families import REASONING_FORMATS, TOOL_FORMATS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


def test_every_family_is_in_the_table() -> None:
    table = PAGE.split("| name | a call |")[1].split("\n\n")[0]
    first_column = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert set(re.findall(r"`([^`]+)`", first_column)) == set(TOOL_FORMATS)


def test_every_way_of_reasoning_is_named() -> None:
    (section,) = re.findall(r"^## Reasoning$(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert set(REASONING_FORMATS) <= set(re.findall(r"`([^`]+)`", section))
