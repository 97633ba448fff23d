"""One registration: an architecture's name, and where its class or its alias is. By hand or installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from . import choices, index
from .alias import Alias
from .conformance import require
from .distributions import ALIASES, MODELS, Distribution, Installation
from .errors import BrokenPlugin, DuplicateArchitecture, IncompatiblePlugin, UsageError
from .importing import load_object, location, split
from .version import incompatibility


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A class somebody holds in their hands."""

    architecture: str
    model_class: type
    distribution: None = None

    @property
    def origin(self) -> str:
        return f"{self.model_class.__module__}, registered by hand"

    @property
    def value(self) -> str:
        return f"{self.model_class.__module__}:{self.model_class.__qualname__}"

    def load(self, contexts: Sequence[str] = ()) -> type:
        return require(self.model_class, origin=self.origin)


@dataclass(frozen=True, slots=True)
class LazyRegisteredModel:
    """``"module:Class"``, imported when asked for; `distribution` is None when registered by hand.

    by_function: not its metadata name the architecture, but a function of it (`registrars.py`).
    """

    architecture: str
    value: str
    distribution: Distribution | None = None
    by_function: bool = False

    @property
    def origin(self) -> str:
        return "a registration by hand" if self.distribution is None else f"dist {self.distribution}"

    def load(self, contexts: Sequence[str] = ()) -> type:
        """Imports and checks the class. Raises BrokenPlugin or InvalidModel."""
        reference = split(self.value)
        if reference is None or not reference[1]:
            raise BrokenPlugin(
                f"the entry point of {self.architecture} is not module:Class (from {self.origin})", value=self.value
            )
        found = load_object(self.value, self.origin, contexts)
        self._refuse_shadow(reference[0])
        return require(found, origin=self.origin)

    def _refuse_shadow(self, module: str) -> None:
        """Two distributions may ship one module name; Python imports the first, which need not be the one meant."""
        file = location(self.value)
        if self.distribution is None or self.by_function or file is None:
            return
        stem = os.path.join(self.distribution.root, *module.split("."))
        own = [path for path in (f"{stem}.py", os.path.join(stem, "__init__.py")) if os.path.exists(path)]
        if own and not any(os.path.samefile(path, file) for path in own):
            raise BrokenPlugin(
                f"module {module} of {self.distribution} is hidden by another of the same name",
                field=module,
                value=file,
                fix="uninstall the distribution that you did not choose",
            )


@dataclass(frozen=True, slots=True)
class RegisteredAlias:
    """An alias somebody holds in their hands."""

    architecture: str
    alias: Alias = field(hash=False)
    distribution: None = None
    origin: str = "a registration by hand"

    @property
    def value(self) -> str:
        return f"an alias of {self.alias.architecture}"

    def load(self, contexts: Sequence[str] = ()) -> Alias:
        return self.alias


@dataclass(frozen=True, slots=True)
class LazyRegisteredAlias:
    """``"module:OBJECT"`` of an installed distribution, imported when asked for."""

    architecture: str
    value: str
    distribution: Distribution

    @property
    def origin(self) -> str:
        return f"dist {self.distribution}"

    def load(self, contexts: Sequence[str] = ()) -> Alias:
        """Imports the object. Raises BrokenPlugin: it cannot be had, or is no Alias, or one that is refused."""
        try:
            found = load_object(self.value, self.origin, contexts)
        except BrokenPlugin as error:
            if error.error_code != "BAD_ALIAS":
                raise
            raise BrokenPlugin(
                f"{error.message} (from {self.origin})", code="BAD_ALIAS", details=error.details, fix=error.fix
            ) from error
        if not isinstance(found, Alias):
            raise not_an_alias(self)
        return found


def not_an_alias(entry: LazyRegisteredAlias) -> BrokenPlugin:
    return BrokenPlugin(
        f"{entry.value} is no Alias (from {entry.origin})",
        field=entry.architecture,
        limit="an object of bestiary.api.Alias",
        fix="a class is registered in the group vllm_models, data about another's class in bestiary_aliases",
    )


ModelEntry: TypeAlias = RegisteredModel | LazyRegisteredModel
AliasEntry: TypeAlias = RegisteredAlias | LazyRegisteredAlias
LazyEntry: TypeAlias = LazyRegisteredModel | LazyRegisteredAlias
Entry: TypeAlias = ModelEntry | AliasEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What the name of an architecture led to.

    Attributes:
        architecture: the name, as it stands in `config.json`. entry: who provides it.
        target: who provides the class; `entry` itself unless that is an alias. alias: None unless it is.
    """

    architecture: str
    entry: Entry
    target: ModelEntry
    model_class: type
    alias: Alias | None = None


def claims(installation: Installation) -> dict[str, list[LazyEntry]]:
    """Everything installed that provides an architecture, by architecture."""
    found: dict[str, list[LazyEntry]] = {}
    for point, distribution in installation.providers(MODELS):
        found.setdefault(point.name, []).append(LazyRegisteredModel(point.name, point.value, distribution))
    for point, distribution in installation.providers(ALIASES):
        found.setdefault(point.name, []).append(LazyRegisteredAlias(point.name, point.value, distribution))
    return found


def choose(architecture: str, claimants: Sequence[LazyEntry], chosen: Mapping[str, str]) -> LazyEntry:
    """The one claimant, or the one the user chose; the same whatever their order."""
    wanted = chosen.get(architecture)
    twice = [claim for claim in claimants if isinstance(claim, LazyRegisteredAlias)]
    twice = [claim for claim in twice if any(o.distribution == claim.distribution and o != claim for o in claimants)]
    if twice:
        raise BrokenPlugin(
            f"{twice[0].distribution} declares {architecture} both as a model and as an alias",
            field=architecture,
            fix=f"its author: one entry, in {MODELS} or in {ALIASES}",
        )
    named = {claim.distribution.name: claim for claim in claimants if claim.distribution is not None}
    if wanted is not None:
        if wanted not in named:
            raise UsageError(
                f"{wanted} does not provide {architecture}", field=architecture, value=wanted,
                limit=f"one of {', '.join(sorted(named))}",
            )  # fmt: skip
        return named[wanted]
    if len(claimants) == 1:
        return claimants[0]
    ordered = sorted(named)
    ours = [name for name in ordered if name in index.official()]
    raise DuplicateArchitecture(
        f"{len(ordered)} distributions claim {architecture}: {', '.join(str(named[n].distribution) for n in ordered)}",
        field=architecture,
        details=[describe(named[name]) for name in ordered],
        fix=f"--plugin {architecture}={(ours or ordered)[0]} (or {choices.ENVIRONMENT}, or the configuration file), "
        "or uninstall the other",
    )


def misfit(claim: Entry) -> IncompatiblePlugin | None:
    """Why what provides an architecture does not fit this core; a function's package was written for no core of ours,
    and is not asked."""
    distribution = claim.distribution
    if distribution is None or (isinstance(claim, LazyRegisteredModel) and claim.by_function):
        return None
    return incompatibility(distribution.name, distribution.version, distribution.api_versions)


def describe(claim: LazyEntry) -> str:
    """Distribution, version, mark, place and entry point, on one line."""
    if claim.distribution is None:
        return f"{claim.value} (registered by hand)"
    mark = " (official)" if claim.distribution.name in index.official() else ""
    kind = " (an alias)" if isinstance(claim, LazyRegisteredAlias) else " (by a function)" * claim.by_function
    return f"{claim.distribution}{mark} at {claim.distribution.path}: {claim.value}{kind}"
