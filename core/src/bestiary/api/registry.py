"""From an architecture's name to its class: one entry point, one import, and every failure with its cause.

    ModelRegistry.resolve(["LlamaForCausalLM"])                          the class, checked
    ModelRegistry.register_model("MyModel", "my_module:MyModel")         without packaging, for this process
    ModelRegistry.register_alias("Yi", Alias(architecture="LlamaForCausalLM"))
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
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import choices, discovery
from .alias import Alias
from .conformance import ModelInfo, capabilities, require
from .distributions import Installation
from .entries import (
    AliasEntry,
    Entry,
    LazyEntry,
    LazyRegisteredAlias,
    LazyRegisteredModel,
    ModelEntry,
    RegisteredAlias,
    RegisteredModel,
    Resolution,
    choose,
    claims,
    misfit,
    not_an_alias,
)
from .errors import BrokenPlugin, DuplicateArchitecture, PluginError, UnknownArchitecture, UsageError
from .importing import entered, split
from .registering import collected
from .unknown import unknown_architecture

if TYPE_CHECKING:
    from .prober import Prober
    from .registrars import RegistrarRow, Registrars
    from .rows import PluginRow

logger = logging.getLogger("bestiary.registry")

_MAX_NAMES = 16

ProbeMode = Literal["never", "cached", "run"]
Choices = Iterable[str] | Mapping[str, str]


class Registry:
    """What this process can serve. Looks at `sys.path` once; `refresh` makes it look again.

    Args:
        paths: folders to look at instead of `sys.path`. cache_directory: instead of the user's.
        probe_timeout_s: how long an import may take that is tried in a child; default: `probe.import_timeout_s()`.
    """

    def __init__(
        self,
        paths: Sequence[str] | None = None,
        cache_directory: Path | None = None,
        probe_timeout_s: float | None = None,
    ) -> None:
        self._paths = paths
        self._cache_directory = cache_directory
        self._probe_timeout_s = probe_timeout_s
        self._by_hand: dict[str, Entry] = {}
        self._installation: Installation | None = None
        self._prober: Prober | None = None
        self._claims: dict[str, list[LazyEntry]] | None = None
        self._registrars: Registrars | None = None
        self._loaded: dict[ModelEntry, type] = {}
        self._aliases: dict[AliasEntry, Alias] = {}
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
            self._claims = None
            self._prober = None
            self._registrars = None
            self._failures.clear()

    def register_model(self, architecture: str, model: type | str) -> None:
        """Adds or replaces an architecture for this process; a string ``"module:Class"`` is imported when asked for.

        Called by a registrar (`registrars.py`), it is the claim of that one's package instead.
        """
        if not isinstance(architecture, str) or not architecture:
            raise UsageError("an architecture is a non-empty string", field="architecture", value=architecture)
        reference = split(model) if isinstance(model, str) else None
        if isinstance(model, str) and (reference is None or not reference[1]):
            raise UsageError("a model by name is written module:Class", field="model", value=model)
        found = collected()
        if found is not None:
            found[architecture] = model
        elif isinstance(model, str):
            self._register(LazyRegisteredModel(architecture, model))
        else:
            self._register(RegisteredModel(architecture, require(model, origin="register_model")))

    def register_alias(self, architecture: str, alias: Alias) -> None:
        """Adds or replaces, for this process, an architecture that is another one under other names."""
        if not isinstance(alias, Alias):
            raise UsageError("an alias is a bestiary.api.Alias", field="alias", value=alias)
        if not isinstance(architecture, str) or not architecture:
            raise UsageError("an architecture is a non-empty string", field="architecture", value=architecture)
        self._register(RegisteredAlias(architecture, alias))

    def _register(self, entry: Entry) -> None:
        architecture = entry.architecture
        with self._lock:
            replaced = self._by_hand.get(architecture) or next(iter(self._claimants(architecture)), None)
            if replaced is not None and replaced.value != entry.value:
                logger.warning(
                    "%s: %s, registered by hand, replaces %s (%s)",
                    architecture, entry.value, replaced.value, replaced.origin,
                )  # fmt: skip
            self._by_hand[architecture] = entry

    def architectures(self) -> list[str]:
        return sorted({*self.claims(), *self._by_hand})

    def claims(self) -> Mapping[str, Sequence[LazyEntry]]:
        """What is installed, by architecture: what metadata name, and what functions are known to register."""
        with self._lock:
            if self._claims is None:
                self._claims = claims(self.installation)
                for entry in self.registrars.claims():
                    self._claims.setdefault(entry.architecture, []).append(entry)
            return self._claims

    @property
    def prober(self) -> Prober:
        """What asks child processes about plugins."""
        from .prober import Prober

        with self._lock:
            if self._prober is None:
                self._prober = Prober(self.installation, self._cache_directory, self._probe_timeout_s)
            return self._prober

    @property
    def registrars(self) -> Registrars:
        """The functions of installed packages that register architectures."""
        from .registrars import Registrars

        with self._lock:
            if self._registrars is None:
                self._registrars = Registrars(self.installation, self.prober)
            return self._registrars

    def ask_registrars(self) -> None:
        """Finds out what the functions register that nobody has asked yet, each in a copy of this process."""
        with self._lock:
            if self.registrars.ask():
                self._claims = None

    def _claimants(self, architecture: str) -> Sequence[LazyEntry]:
        return self.claims().get(architecture, ())

    def entry(self, architecture: str, plugins: Choices = ()) -> Entry:
        """Who provides `architecture`; imports nothing here.

        Where nobody is known to, or not the one that was chosen, functions that nobody has asked yet are asked.

        Raises:
            UnknownArchitecture, DuplicateArchitecture, IncompatiblePlugin; UsageError for a choice nobody answers to.
        """
        if architecture in self._by_hand:
            return self._by_hand[architecture]
        chosen = choices.current(plugins)
        wanted = chosen.get(architecture)
        known = {claim.distribution.name for claim in self._claimants(architecture) if claim.distribution is not None}
        if not known or (wanted is not None and wanted not in known):
            self.ask_registrars()
        claimants = self._claimants(architecture)
        if not claimants:
            raise unknown_architecture(self, [architecture])
        found = choose(architecture, claimants, chosen)
        refused = misfit(found)
        if refused is not None:
            raise refused
        return found

    def resolve(self, architectures: Sequence[str], plugins: Choices = ()) -> type:
        """The class of the first of `architectures` that can be had; see `find`."""
        return self.find(architectures, plugins).model_class

    def find(self, architectures: Sequence[str], plugins: Choices = (), *, guarded: bool = False) -> Resolution:
        """The first of `architectures` that can be had: who provides it, its class, and its alias where it is one.

        A name that is installed but broken or incompatible is passed over, with a line in the log, only for a later
        one that works. Two claimants are never passed over: that is the user's to decide.

        Args:
            guarded: try each import in a child process first, once a build of a package (see `guard`).
        """
        given = [architectures] if isinstance(architectures, str) else architectures[:_MAX_NAMES]
        names = [name if isinstance(name, str) else repr(name) for name in given]
        failed: list[PluginError | UnknownArchitecture] = []
        for name in names:
            try:
                found = self._find(name, plugins, guarded)
            except UnknownArchitecture as error:
                if name in self._by_hand or self._claimants(name):
                    failed.append(error)  # the name is known: it is an alias, and what it names is not there
                continue
            except DuplicateArchitecture:
                raise
            except PluginError as error:
                failed.append(error)
                continue
            for passed in failed:
                logger.warning("%s is used instead: %s", name, passed.message)
            return found
        raise failed[0] if failed else unknown_architecture(self, names)

    def _find(self, name: str, plugins: Choices, guarded: bool) -> Resolution:
        entry = self.entry(name, plugins)
        if isinstance(entry, RegisteredModel | LazyRegisteredModel):
            return Resolution(architecture=name, entry=entry, target=entry, model_class=self.load(entry, guarded))
        alias = self.alias(entry, guarded)
        target = self.target(entry, alias.architecture, plugins)
        model_class = self.load(target, guarded)
        return Resolution(architecture=name, entry=entry, target=target, model_class=model_class, alias=alias)

    def target(self, entry: AliasEntry, architecture: str, plugins: Choices = ()) -> ModelEntry:
        """Who provides the class of an alias of `architecture`; imports nothing.

        Raises:
            UnknownArchitecture: nobody. BrokenPlugin: BAD_ALIAS, another alias, or the alias itself.
        """
        who = f"{entry.architecture} (from {entry.origin})"
        try:
            found = self.entry(architecture, plugins)
        except UnknownArchitecture as error:
            raise UnknownArchitecture(
                f"{who} is an alias of {architecture}, which no installed package implements",
                field=entry.architecture,
                value=architecture,
                details=error.details,
                fix=error.fix,
            ) from error
        if isinstance(found, RegisteredModel | LazyRegisteredModel):
            return found
        what = "itself" if found == entry else f"{architecture}, an alias as well (from {found.origin})"
        raise BrokenPlugin(
            f"{who} is an alias of {what}",
            code="BAD_ALIAS",
            field=entry.architecture,
            value=architecture,
            limit="the name of an architecture that has a class",
            fix="its author: name the architecture that has the class, and put both tables together",
        )

    def alias(self, entry: AliasEntry, guarded: bool = False) -> Alias:
        """Imports the data that `entry` names, once."""
        with self._lock:
            if entry not in self._aliases:
                self._aliases[entry] = self._import(entry, guarded)  # type: ignore[assignment]
            return self._aliases[entry]

    def load(self, entry: ModelEntry, guarded: bool = False) -> type:
        """Imports the class that `entry` names, once."""
        with self._lock:
            if entry not in self._loaded:
                self._loaded[entry] = self._import(entry, guarded)  # type: ignore[assignment]
            return self._loaded[entry]

    def _import(self, entry: Entry, guarded: bool) -> type | Alias:
        try:
            loaded = self._loaded_from(entry, guarded)
        except PluginError as error:
            self._failures[entry] = error
            raise
        self._failures.pop(entry, None)
        return loaded

    def _loaded_from(self, entry: Entry, guarded: bool) -> type | Alias:
        distribution = entry.distribution
        if distribution is None:
            return entry.load(self.prober.contexts)
        registered = self.registrars.call_all_of(distribution)
        if isinstance(entry, LazyRegisteredModel) and entry.by_function:
            model = registered.get(entry.architecture)
            if model is None:
                raise BrokenPlugin(
                    f"no function of {distribution} has registered {entry.architecture} here",
                    field=entry.architecture, details=self.registrars.causes(distribution),
                    fix="reinstall, upgrade or remove the package; bestiary models shows what its functions register",
                )  # fmt: skip
            if not isinstance(model, str):
                return require(model, origin=entry.origin)
            entry = replace(entry, value=model)
        if guarded:
            is_data = isinstance(entry, LazyRegisteredAlias)
            self.prober.guard(entry.value, distribution, None if is_data else entry.architecture)
        return entry.load(self.prober.contexts)

    def importing(self) -> AbstractContextManager[None]:
        """Within it, models are imported and built."""
        return entered(self.prober.contexts)

    def inspect(self, architecture: str, plugins: Choices = ()) -> ModelInfo:
        """What the class can do. One whose module is not imported yet is imported in a child process, once."""
        entry = self.entry(architecture, plugins)
        if isinstance(entry, RegisteredAlias | LazyRegisteredAlias):
            target = self.target(entry, self._inspect_alias(entry), plugins)
            return replace(self.inspect(target.architecture, plugins), architecture=architecture)
        if isinstance(entry, RegisteredModel) or entry.value.partition(":")[0].strip() in sys.modules:
            return capabilities(self.load(entry), architecture)
        result = self.prober.probe(entry)
        if result.info is None:
            raise result.error()
        return result.info

    def _inspect_alias(self, entry: AliasEntry) -> str:
        """The architecture that the alias names, found out in a child process."""
        if isinstance(entry, RegisteredAlias):
            return entry.alias.architecture
        result = self.prober.probe(entry)
        if result.outcome == "ok" and not result.alias_of:
            raise not_an_alias(entry)
        if not result.alias_of:
            raise result.error()
        return result.alias_of

    def failure(self, entry: Entry) -> PluginError | None:
        """Why `entry` could not be loaded, if that was tried."""
        return self._failures.get(entry)

    def failures(self) -> list[tuple[Entry, PluginError]]:
        """Everything that could not be loaded so far."""
        return list(self._failures.items())

    def list_registrars(self, probe: ProbeMode = "cached") -> list[RegistrarRow]:
        """Rows for the functions of packages that register architectures; "run" asks those that nobody has asked."""
        with self._lock:
            if probe == "run" and self.registrars.unknown:
                self.registrars.probe()
                self._claims = None
            return self.registrars.rows()

    def by_hand(self) -> list[Entry]:
        return [self._by_hand[name] for name in sorted(self._by_hand)]

    def list(self, probe: ProbeMode = "cached", *, verify: bool = False, plugins: Choices = ()) -> list[PluginRow]:
        """Rows for `bestiary models` and `doctor`, never an exception for a plugin's sake; see `rows.plugin_rows`."""
        from .rows import plugin_rows

        self.list_registrars(probe)
        return plugin_rows(self, probe, verify=verify, choices=choices.current(plugins))


ModelRegistry = Registry()
