"""One registration: an architecture's name and where its class is. Eager and lazy, by hand and installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import choices, index
from .conformance import require
from .discovery import Distribution
from .errors import BrokenPlugin, DuplicateArchitecture, UsageError
from .importing import load_object, location, split


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

    def load(self) -> type:
        return require(self.model_class, origin=self.origin)


@dataclass(frozen=True, slots=True)
class LazyRegisteredModel:
    """``"module:Class"``, imported when asked for; `distribution` is None when registered by hand."""

    architecture: str
    value: str
    distribution: Distribution | None = None

    @property
    def origin(self) -> str:
        return "a registration by hand" if self.distribution is None else f"dist {self.distribution}"

    def load(self) -> type:
        """Imports and checks the class. Raises BrokenPlugin or InvalidModel."""
        reference = split(self.value)
        if reference is None or not reference[1]:
            raise BrokenPlugin(
                f"the entry point of {self.architecture} is not module:Class (from {self.origin})", value=self.value
            )
        found = load_object(self.value, self.origin)
        self._refuse_shadow(reference[0])
        return require(found, origin=self.origin)

    def _refuse_shadow(self, module: str) -> None:
        """Two distributions may ship one module name; Python imports the first, which need not be the one meant."""
        file = location(self.value)
        if self.distribution is None or file is None:
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


Entry: TypeAlias = RegisteredModel | LazyRegisteredModel


def choose(
    architecture: str, claimants: Sequence[LazyRegisteredModel], chosen: Mapping[str, str]
) -> LazyRegisteredModel:
    """The one claimant, or the one the user chose; the same whatever their order."""
    wanted = chosen.get(architecture)
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


def describe(claim: LazyRegisteredModel) -> str:
    """Distribution, version, mark, place and entry point, on one line."""
    if claim.distribution is None:
        return f"{claim.value} (registered by hand)"
    mark = " (official)" if claim.distribution.name in index.official() else ""
    return f"{claim.distribution}{mark} at {claim.distribution.path}: {claim.value}"
