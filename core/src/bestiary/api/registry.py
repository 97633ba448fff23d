"""From an architecture's name to its class: one entry point, one import, and every failure with its cause.

    ModelRegistry.resolve(["LlamaForCausalLM"])                          the class, checked
    ModelRegistry.register_model("MyModel", "my_module:MyModel")         without packaging, for this process
    ModelRegistry.inspect("LlamaForCausalLM")                            what it can do, without importing it here
    ModelRegistry.list()                                                 rows for `bestiary models` and `doctor`

Registrations by hand win over installed ones. Two distributions that claim one name are an error until the user
chooses (`choices.py`); nothing depends on the order of `sys.path`. Listing imports no plugin.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import choices, discovery, index
from .conformance import ModelInfo, capabilities, require
from .discovery import Installation
from .entries import Entry, LazyRegisteredModel, RegisteredModel, choose
from .errors import DuplicateArchitecture, PluginError, UnknownArchitecture, UsageError
from .importing import split
from .version import incompatibility

if TYPE_CHECKING:
    from .probe import ProbeResult
    from .probe_cache import ProbeCache
    from .rows import PluginRow

logger = logging.getLogger("bestiary.registry")

_MAX_NAMES = 16
_NEAR_CHARS = 128

ProbeMode = Literal["never", "cached", "run"]
Choices = Iterable[str] | Mapping[str, str]


class Registry:
    """What this process can serve. Looks at `sys.path` once; `refresh` makes it look again.

    Args:
        paths: folders to look at instead of `sys.path`. cache_directory: instead of the user's.
        probe_timeout_s: how long an inspection's import may take.
    """

    def __init__(
        self,
        paths: Sequence[str] | None = None,
        cache_directory: Path | None = None,
        probe_timeout_s: float = 30.0,
    ) -> None:
        self._paths = paths
        self._cache_directory = cache_directory
        self._probe_timeout_s = probe_timeout_s
        self._by_hand: dict[str, Entry] = {}
        self._installation: Installation | None = None
        self._cache: ProbeCache | None = None
        self._loaded: dict[Entry, type] = {}
        self._failures: dict[Entry, PluginError] = {}
        self._lock = threading.RLock()

    @property
    def installation(self) -> Installation:
        with self._lock:
            if self._installation is None:
                self._installation = discovery.scan(self._paths)
            return self._installation

    @property
    def cache_directory(self) -> Path | None:
        """Where what is known of plugins is kept; None: in the user's cache folder."""
        return self._cache_directory

    def refresh(self) -> None:
        """Forgets what was found; the next question looks again. Classes already handed out stay as they are."""
        with self._lock:
            self._installation = None
            self._cache = None
            self._failures.clear()

    def register_model(self, architecture: str, model: type | str) -> None:
        """Adds or replaces an architecture for this process; a string ``"module:Class"`` is imported when asked for."""
        if not isinstance(architecture, str) or not architecture:
            raise UsageError("an architecture is a non-empty string", field="architecture", value=architecture)
        entry: Entry
        if isinstance(model, str):
            reference = split(model)
            if reference is None or not reference[1]:
                raise UsageError("a model by name is written module:Class", field="model", value=model)
            entry = LazyRegisteredModel(architecture, model)
        else:
            entry = RegisteredModel(architecture, require(model, origin="register_model"))
        with self._lock:
            replaced = self._by_hand.get(architecture) or next(iter(self._claimants(architecture)), None)
            if replaced is not None and replaced.value != entry.value:
                logger.warning(
                    "%s: %s, registered by hand, replaces %s (%s)",
                    architecture, entry.value, replaced.value, replaced.origin,
                )  # fmt: skip
            self._by_hand[architecture] = entry

    def architectures(self) -> list[str]:
        installed = (entry.name for entry, _ in self.installation.providers(discovery.MODELS))
        return sorted({*installed, *self._by_hand})

    def _claimants(self, architecture: str) -> list[LazyRegisteredModel]:
        return [
            LazyRegisteredModel(architecture, entry.value, distribution)
            for entry, distribution in self.installation.providers(discovery.MODELS)
            if entry.name == architecture
        ]

    def entry(self, architecture: str, plugins: Choices = ()) -> Entry:
        """Who provides `architecture`; imports nothing.

        Raises:
            UnknownArchitecture, DuplicateArchitecture, IncompatiblePlugin; UsageError for a choice nobody answers to.
        """
        if architecture in self._by_hand:
            return self._by_hand[architecture]
        claimants = self._claimants(architecture)
        if not claimants:
            raise self._unknown([architecture])
        chosen = choose(architecture, claimants, choices.current(plugins))
        if chosen.distribution is not None:
            refused = incompatibility(
                chosen.distribution.name, chosen.distribution.version, chosen.distribution.api_versions
            )
            if refused is not None:
                raise refused
        return chosen

    def resolve(self, architectures: Sequence[str], plugins: Choices = ()) -> type:
        """The class of the first of `architectures` that can be had.

        A name that is installed but broken or incompatible is passed over, with a line in the log, only for a later
        one that works. Two claimants are never passed over: that is the user's to decide.
        """
        given = [architectures] if isinstance(architectures, str) else architectures[:_MAX_NAMES]
        names = [name if isinstance(name, str) else repr(name) for name in given]
        failed: list[PluginError] = []
        for name in names:
            try:
                found = self.load(self.entry(name, plugins))
            except UnknownArchitecture:
                continue
            except DuplicateArchitecture:
                raise
            except PluginError as error:
                failed.append(error)
                continue
            for passed in failed:
                logger.warning("%s is used instead: %s", name, passed.message)
            return found
        raise failed[0] if failed else self._unknown(names)

    def load(self, entry: Entry) -> type:
        """Imports what `entry` names, once."""
        with self._lock:
            if entry not in self._loaded:
                try:
                    self._loaded[entry] = entry.load()
                except PluginError as error:
                    self._failures[entry] = error
                    raise
                self._failures.pop(entry, None)
            return self._loaded[entry]

    def inspect(self, architecture: str, plugins: Choices = ()) -> ModelInfo:
        """What the class can do. One whose module is not imported yet is imported in a child process, once."""
        entry = self.entry(architecture, plugins)
        if isinstance(entry, RegisteredModel) or entry.value.partition(":")[0].strip() in sys.modules:
            return capabilities(self.load(entry), architecture)
        result = self.probe(entry)
        if result.info is None:
            raise result.error()
        return result.info

    def kept_probe(self, entry: LazyRegisteredModel) -> ProbeResult | None:
        """What an earlier probe said about `entry`, if it still holds. What was registered by hand is not kept."""
        if entry.distribution is None:
            return None
        kept = self._probe_cache().get(entry.distribution, entry.value)
        return None if kept is None else kept.named(entry.architecture)

    def probe(self, entry: LazyRegisteredModel) -> ProbeResult:
        """The kept answer about `entry`, or that of a child process started now."""
        from .probe import probe

        known = self.kept_probe(entry)
        if known is not None:
            return known
        result = probe(entry.value, entry.architecture, entry.origin, timeout_s=self._probe_timeout_s)
        if entry.distribution is not None:
            self._probe_cache().put(entry.distribution, entry.value, result)
        return result

    def _probe_cache(self) -> ProbeCache:
        from .probe_cache import ProbeCache

        with self._lock:
            if self._cache is None:
                self._cache = ProbeCache(self.installation.versions, self._cache_directory)
            return self._cache

    def failure(self, entry: Entry) -> PluginError | None:
        """Why `entry` could not be loaded, if that was tried."""
        return self._failures.get(entry)

    def by_hand(self) -> list[Entry]:
        return [self._by_hand[name] for name in sorted(self._by_hand)]

    def list(self, probe: ProbeMode = "cached", *, verify: bool = False, plugins: Choices = ()) -> list[PluginRow]:
        """Rows for `bestiary models` and `doctor`, never an exception for a plugin's sake; see `rows.plugin_rows`."""
        from .rows import plugin_rows

        return plugin_rows(self, probe, verify=verify, choices=choices.current(plugins))

    def _unknown(self, names: Sequence[str]) -> UnknownArchitecture:
        """Nothing installed has any of `names`: what comes near, what to install, what failed."""
        import difflib

        known, catalogue = self.architectures(), index.packages()
        details, packages = [], []
        for name in names:
            near = difflib.get_close_matches(name[:_NEAR_CHARS], sorted({*known, *catalogue}), 3, 0.6)
            sure = difflib.get_close_matches(name[:_NEAR_CHARS], catalogue, 1, 0.9)
            packages += [catalogue[one] for one in sure if one not in known]
            if near and name not in catalogue:
                named = [each if each in known else f"{each} (package {catalogue[each]})" for each in near]
                details.append(f"near {name!r:.64}: {', '.join(named)}")
        details.append(f"installed: {', '.join(known[:12]) or 'no architecture'}{' …' if len(known) > 12 else ''}")
        details += [f"failed to load: {entry.architecture}: {error.message}" for entry, error in self._failures.items()]
        details += [f"skipped: {row.name}: {row.reason} ({row.path})" for row in self.installation.malformed]
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


ModelRegistry = Registry()
