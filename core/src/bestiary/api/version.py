"""The version of the interface between core and plugins, and what it promises.

`API_VERSION` is ``(major, minor)``. Core and a plugin fit when the majors are equal and the plugin's minor is not above
core's. Within a major, nothing that `bestiary.api` and `bestiary.nn` export is renamed, removed, or given a new
required argument; a minor only adds. A plugin states the version it was written for as an entry point, so that it is
read without importing anything:

    [project.entry-points.bestiary_api]
    "1.0" = "my_plugin"

A plugin that works with several majors states several; one that fits is enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import IncompatiblePlugin

API_VERSION: tuple[int, int] = (1, 0)
API_GROUP = "bestiary_api"

_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


def text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def parse(stated: str) -> tuple[int, int] | None:
    """``"1.0"`` as numbers; None for anything that is not two plain integers."""
    match = _VERSION.fullmatch(stated)
    return None if match is None else (int(match[1]), int(match[2]))


def fits(wanted: tuple[int, int], core: tuple[int, int] = API_VERSION) -> bool:
    return wanted[0] == core[0] and wanted[1] <= core[1]


def incompatibility(
    distribution: str, version: str, stated: Sequence[str], core: tuple[int, int] = API_VERSION
) -> IncompatiblePlugin | None:
    """Why this distribution does not fit core, as an error to raise or to show; None when it fits.

    Args:
        stated: the names of its `bestiary_api` entry points.
    """
    wanted = [parse(name) for name in stated]
    if any(one is not None and fits(one, core) for one in wanted):
        return None
    known = [one for one in wanted if one is not None]
    who = f"{distribution} {version}"
    if not stated:
        message = f"{who} does not say which core API it was written for; core offers {text(core)}"
        fix = (
            f'pip install --upgrade {distribution}; its author: [project.entry-points.{API_GROUP}] "{text(core)}" = "…"'
        )
    elif not known:
        message = f"{who} was written for core API {' or '.join(map(repr, stated))}; core offers {text(core)}"
        fix = f'pip install --upgrade {distribution}; its author: a version is two integers, such as "{text(core)}"'
    else:
        newest = max(known)
        message = f"{who} was written for core API {' and '.join(map(text, sorted(known)))}; core offers {text(core)}"
        behind = newest > core
        fix = f"pip install --upgrade {'bestiary' if behind else distribution}"
        if not behind:
            fix += f" (or a core that offers {newest[0]}.x: pip install 'bestiary<{core[0]}')"
    return IncompatiblePlugin(
        message,
        field=API_GROUP,
        value=", ".join(stated) or "nothing",
        limit=f"major {core[0]}, minor at most {core[1]}",
        fix=fix,
    )
