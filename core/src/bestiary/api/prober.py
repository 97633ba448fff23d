"""What children were asked about an installation, and what they answered: the one owner of questions and their cache.

A child imports as this process does: within the context managers (``"module:function"``) that packages name in the
entry-point group `bestiary_import_contexts`, if they fit this core.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from . import distributions
from .distributions import Distribution, Installation
from .entries import LazyEntry, LazyRegisteredAlias
from .probe import ProbeResult, Question, import_timeout_s
from .probe_cache import ProbeCache
from .version import incompatibility


class Prober:
    """Args:
    cache_directory: where answers are kept; None: in the user's folder.
    timeout_s: how long an import may take; None: `import_timeout_s()`.
    """

    def __init__(self, installation: Installation, cache_directory: Path | None, timeout_s: float | None) -> None:
        self._installation = installation
        self._cache_directory = cache_directory
        self._timeout_s = timeout_s

    @cached_property
    def _helpers(self) -> list[tuple[Distribution, str]]:
        offers = self._installation.providers(distributions.IMPORT_CONTEXTS)
        return [
            (owner, entry.value)
            for entry, owner in offers
            if incompatibility(owner.name, owner.version, owner.api_versions) is None
        ]

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """The import contexts."""
        return tuple(value for _, value in self._helpers)

    @cached_property
    def cache(self) -> ProbeCache:
        return ProbeCache(self._installation.versions, self._cache_directory, self._helpers)

    @property
    def timeout_s(self) -> float:
        return import_timeout_s() if self._timeout_s is None else self._timeout_s

    def guard(self, value: str, distribution: Distribution, architecture: str | None) -> None:
        """Refuses ``"module:object"`` if importing it ends or hangs the process; see `trial.guard`. Without an
        architecture, whose class it would be, it may be any object.

        Raises:
            BrokenPlugin: with how it ended.
        """
        from .trial import guard

        guard(self._question(value, f"dist {distribution}", architecture), distribution, self.cache, self.timeout_s)

    def kept(self, entry: LazyEntry) -> ProbeResult | None:
        """What an earlier probe said about `entry`, if it still holds. What was registered by hand is not kept."""
        if entry.distribution is None:
            return None
        kept = self.cache.get(entry.distribution, entry.value)
        return None if kept is None else kept.named(entry.architecture)

    def probe(self, entry: LazyEntry) -> ProbeResult:
        """The kept answer about `entry`, or that of a child process started now."""
        from .probe import probe

        known = self.kept(entry)
        if known is not None:
            return known
        architecture = None if isinstance(entry, LazyRegisteredAlias) else entry.architecture
        result = probe(self._question(entry.value, entry.origin, architecture), timeout_s=self.timeout_s)
        if entry.distribution is not None:
            self.cache.put(entry.distribution, entry.value, result)
        return result

    def _question(self, value: str, origin: str, architecture: str | None) -> Question:
        return Question(
            value=value,
            origin=origin,
            kind="object" if architecture is None else "class",
            architecture=architecture or "",
            contexts=self.contexts,
        )
