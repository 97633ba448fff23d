"""Writes docs/errors.md, every error code, out of the catalogue: `scripts/reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bestiary.api.catalogue import AREAS, entries

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
HEAD = """\
# Errors

Every error has a stable code, the field it is about, the rule, the value, and what to do. In Python they are the
classes of `bestiary.api.errors`: `except BestiaryError` catches all, `error.error_code` is the code and
`error.as_dict()` the error as data. `bestiary explain CODE` says the same as this page: `scripts/reference` writes it
from the same texts. A plugin may raise codes of its own.
"""


def page() -> str:
    return "\n".join([HEAD, *(part for area, title in AREAS.items() for part in _area(area, title))])


def _area(area: str, title: str) -> Iterator[str]:
    known = [each for each in entries().values() if each.area == area]
    yield f"## {title}\n\n| code | HTTP | |\n|---|---|---|"
    yield (
        "\n".join(f"| [`{each.code}`](#{each.code.lower()}) | {each.status} | {each.title} |" for each in known) + "\n"
    )
    for each in known:
        causes = "\n".join(f"* {cause}" for cause in each.causes)
        yield f"### `{each.code}`\n\n{each.title}. {each.meaning}\n\n{causes}\n\n**What to do.** {each.remedy}\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
