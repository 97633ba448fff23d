"""Which installed package knows a GGUF file's architecture: the entry-point group `bestiary_gguf`."""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.api import distributions
from bestiary.api.errors import BrokenPlugin, UnknownArchitecture
from bestiary.api.gguf import GgufArchitecture
from bestiary.api.importing import load_object
from bestiary.api.index import gguf_packages
from bestiary.api.registry import Registry
from bestiary.api.version import incompatibility

_AUTHOR = f"its author: an entry point in the group {distributions.GGUF}, and pip install again"


def gguf_declaration(registry: Registry, architecture: str, metadata: Mapping[str, object]) -> GgufArchitecture:
    """The declaration for a file of this `general.architecture` and metadata. Imports the one module that holds it.

    Several models may go by one `general.architecture`; an entry named after a metadata key of theirs
    (``llama.expert_count``) is for the files that have this key with a value other than 0, and is preferred.

    Raises:
        UnknownArchitecture: no package declares it. BrokenPlugin, IncompatiblePlugin: one does and cannot be used.
    """
    offers = list(registry.installation.providers(distributions.GGUF))
    wanted = _kind(architecture, metadata, {entry.name for entry, _ in offers} | set(gguf_packages()))
    for entry, distribution in offers:
        if entry.name != wanted:
            continue
        refused = incompatibility(distribution.name, distribution.version, distribution.api_versions)
        if refused is not None:
            raise refused
        registry.prober.guard(entry.value, distribution, None)
        found = load_object(entry.value, f"dist {distribution}")
        if not isinstance(found, GgufArchitecture):
            raise BrokenPlugin(
                f"{entry.value} of {distribution} is no GgufArchitecture", field=entry.name, value=type(found).__name__
            )
        return found
    package = gguf_packages().get(wanted)
    kind = "" if wanted == architecture else f" with {wanted}"
    raise UnknownArchitecture(
        f"no installed package knows GGUF files of architecture {architecture!r:.64}{kind}",
        field="general.architecture",
        value=architecture,
        limit=f"one of {', '.join(sorted({entry.name for entry, _ in offers})) or '(none installed)'}",
        fix=f"pip install {package}" if package else f"install the package that provides it; {_AUTHOR}",
    )


def _kind(architecture: str, metadata: Mapping[str, object], known: set[str]) -> str:
    """The file's kind among the known ones: its architecture, or one of its metadata keys below that."""
    marks = (name for name in sorted(known) if name.startswith(f"{architecture}.") and metadata.get(name))
    return next(marks, architecture)
