"""The error for an architecture that nothing installed has: what comes near, what to install, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import index
from .errors import UnknownArchitecture

if TYPE_CHECKING:
    from .registry import Registry

_NEAR_CHARS = 128


def unknown_architecture(registry: Registry, names: Sequence[str]) -> UnknownArchitecture:
    """The error, to be raised, for `names`, none of which is claimed."""
    import difflib

    known, catalogue = registry.architectures(), index.packages()
    details, packages = [], []
    for name in names:
        near = difflib.get_close_matches(name[:_NEAR_CHARS], sorted({*known, *catalogue}), 3, 0.6)
        sure = difflib.get_close_matches(name[:_NEAR_CHARS], catalogue, 1, 0.9)
        packages += [catalogue[one] for one in sure if one not in known]
        if near and name not in catalogue:
            named = [each if each in known else f"{each} (package {catalogue[each]})" for each in near]
            details.append(f"near {name!r:.64}: {', '.join(named)}")
    details.append(f"installed: {', '.join(known[:12]) or 'no architecture'}{' …' if len(known) > 12 else ''}")
    details += [f"skipped: {row.name}: {row.reason} ({row.path})" for row in registry.installation.malformed]
    details += [f"failed to register: {line}" for line in registry.registrars.failures()]
    details += [f"failed to load: {entry.architecture}: {error.message}" for entry, error in registry.failures()]
    fix = f"pip install {' '.join(dict.fromkeys(packages))}" if packages else (
        "install the package that provides it; its author: an entry point in the group vllm_models"
    )  # fmt: skip
    shown = ", ".join(f"{name!r:.64}" for name in names) or "(config.json names none)"
    return UnknownArchitecture(
        f"no installed package implements {shown}",
        field="architectures",
        value=list(names),
        details=details,
        fix=fix,
    )
