"""Which installed package knows a GGUF file's architecture: the entry-point group `bestiary_gguf`."""

from __future__ import annotations

from bestiary.api import discovery
from bestiary.api.errors import BrokenPlugin, UnknownArchitecture
from bestiary.api.gguf import GgufArchitecture
from bestiary.api.importing import load_object
from bestiary.api.index import gguf_packages
from bestiary.api.registry import Registry
from bestiary.api.version import incompatibility


def gguf_declaration(registry: Registry, architecture: str) -> GgufArchitecture:
    """The declaration for `general.architecture`. Imports the one module that holds it.

    Raises:
        UnknownArchitecture: no package declares it. BrokenPlugin, IncompatiblePlugin: one does and cannot be used.
    """
    offers = list(registry.installation.providers(discovery.GGUF))
    for entry, distribution in offers:
        if entry.name != architecture:
            continue
        refused = incompatibility(distribution.name, distribution.version, distribution.api_versions)
        if refused is not None:
            raise refused
        registry.guard(entry.value, distribution, None)
        found = load_object(entry.value, f"dist {distribution}")
        if not isinstance(found, GgufArchitecture):
            raise BrokenPlugin(
                f"{entry.value} of {distribution} is no GgufArchitecture", field=entry.name, value=type(found).__name__
            )
        return found
    package = gguf_packages().get(architecture)
    raise UnknownArchitecture(
        f"no installed package knows GGUF files of architecture {architecture!r:.64}",
        field="general.architecture",
        value=architecture,
        limit=f"one of {', '.join(sorted({entry.name for entry, _ in offers})) or '(none installed)'}",
        fix=f"pip install {package}" if package else "install the package that provides it: bestiary models",
    )
