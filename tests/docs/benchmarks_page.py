"""Writes what docs/benchmarks/README.md says of starting, out of the newest record of `bench start`:
`scripts/reference`."""

from __future__ import annotations

import json
from pathlib import Path

from bestiary.bench.table import table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
PAGE = FOLDER / "README.md"
TITLE = "## SmolLM2-135M: from the command to the first token"
ABOUT = """\
`bestiary serve smollm2` and a streamed answer, start after start, files in the page cache. A phase is one of the engine
process, which begins while the server's own is still importing; the last line is what a start takes beside importing
torch and reading weights.

    bestiary bench start smollm2 --output docs/benchmarks/DATE-smollm2-start-cpu.json
"""


def page(folder: Path = FOLDER) -> str:
    """The page with that section as it should be: the last."""
    before, found, _ = (folder / "README.md").read_text(encoding="utf-8").partition(TITLE)
    return before + (section(folder) if found else "")


def section(folder: Path = FOLDER) -> str:
    records = sorted(folder.glob("*-start-cpu.json"))
    if not records:
        return f"{TITLE}\n\n{ABOUT}\nNo start is recorded yet.\n"
    shown = table(json.loads(records[-1].read_text("utf-8")))
    lines = "\n".join(f"    {line}".rstrip() for line in shown.splitlines())
    return f"{TITLE} ([record]({records[-1].name}))\n\n{ABOUT}\n{lines}\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
