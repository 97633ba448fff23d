"""Every stable error code: what it means, why it happens, what to do, and its HTTP status.

The texts are data. A test holds them against the source: no code is raised that is
not described, and none is described that nothing raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import UsageError

AREAS = {
    "usage": "Wrong arguments and options",
    "request": "Requests",
    "http": "HTTP",
    "adapter": "Adapters",
    "model": "Finding and reading a model",
    "weights": "Weights",
    "plugin": "Packages",
    "engine": "The runtime",
}
"""Area → what it is called; each is a file, `data/codes/AREA.toml`."""
_DATA = Path(__file__).with_name("data") / "codes"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEntry:
    """Attributes:
    code: as in `BestiaryError.error_code`. area: a key of `AREAS`.
    title: a few words. meaning: a sentence or two. causes: the usual ones. remedy: what to do.
    status: of an HTTP response that reports it.
    """

    code: str
    area: str
    title: str
    status: int
    meaning: str
    causes: tuple[str, ...]
    remedy: str


@cache
def entries() -> Mapping[str, CodeEntry]:
    """Code → what is known of it, area by area."""
    import tomllib

    found: dict[str, CodeEntry] = {}
    for area in AREAS:
        for code, row in tomllib.loads((_DATA / f"{area}.toml").read_text(encoding="utf-8")).items():
            found[code] = CodeEntry(code=code, area=area, **{**row, "causes": tuple(row["causes"])})
    return found


def find(code: str) -> CodeEntry | None:
    """The entry of exactly this code; None for a code that only a plugin knows."""
    return entries().get(code)


def entry(code: str) -> CodeEntry:
    """The entry of a code as people write it: in any case, with dashes or spaces.

    Raises:
        UsageError: there is none; the nearest are named.
    """
    wanted = "_".join(code.upper().replace("-", "_").split())
    found = find(wanted)
    if found is None:
        near = _near(wanted)
        hint = f"did you mean {' or '.join(near)}?" if near else "bestiary explain lists all codes"
        raise UsageError(f"there is no error code {code[:64]!r}", field="code", limit=hint, fix="bestiary explain")
    return found


def _near(wanted: str) -> list[str]:
    """Up to three codes that look alike, or that have a word in common with what is wanted."""
    alike = difflib.get_close_matches(wanted, entries(), 3)
    words = set(wanted.split("_")) - {""}
    sharing = [code for code in entries() if words & set(code.split("_"))]
    return list(dict.fromkeys([*alike, *sharing]))[:3]
