"""Writes docs/vllm-symbols.md, what is served at vLLM's module paths, by asking for all of it: `scripts/reference`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bestiary_vllm import modules, said, table
from bestiary_vllm.table import Symbol

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vllm-symbols.md"
HEAD = """\
# What is served of vLLM

The names that model files find at vLLM's module paths where `bestiary-vllm` is installed and vLLM is not, in the
spelling of vLLM 0.33; what is marked *older* is a spelling of earlier versions, and says so once when it is used.
[Models written for vLLM](vllm.md) explains how to run such files. `scripts/reference` writes this page by loading every
name.
"""


def page() -> str:
    parts = [HEAD, _counts()]
    for module, names in sorted(table.modules().items()):
        if names:
            parts += [
                f"## `{module}`\n",
                "| name | |\n|---|---|",
                *(_row(each) for _, each in sorted(names.items())),
                "",
            ]
    return "\n".join(parts)


def _counts() -> str:
    kinds = Counter(_kind(each) for each in table.symbols())
    return "| | names |\n|---|---|\n" + "\n".join(f"| {kind} | {count} |" for kind, count in kinds.most_common()) + "\n"


def _kind(symbol: Symbol) -> str:
    if symbol.target is None:
        return "not served"
    if symbol.raises is not None:
        return "a name only, an error when it is used"
    return "older spelling" if symbol.now else "served, and does nothing here" if symbol.inert else "served"


def _row(symbol: Symbol) -> str:
    return f"| {'any other name' if symbol.name == '*' else f'`{symbol.name}`'} | {' '.join(_remarks(symbol))} |"


def _remarks(symbol: Symbol) -> Iterator[str]:
    if symbol.target is None:
        yield f"not served: {symbol.why_not}"
        return
    if symbol.name != "*":
        modules.load(symbol)  # or the page is not written
    if symbol.raises is not None:
        yield f"a name only, an error when it is used: {symbol.raises}"
        return
    own = symbol.target.startswith("bestiary_vllm.")
    yield "of this package" if own else f"`{symbol.target.replace(':', '.')}`"
    if symbol.now:
        yield (
            f"– *older*: `{symbol.now}` now"
            if ":" in symbol.now and " " not in symbol.now
            else f"– *older*: {symbol.now}"
        )
    if symbol.inert:
        yield f"– does nothing here: {symbol.inert}"


def main() -> None:
    said.logger.disabled = True
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
