"""Registrars: functions of installed packages that name architectures only when they are called.

A wheel may make core look for such functions in a group of entry points:

    [project.entry-points.bestiary_registrars]
    "its.group" = "its_module:watch"

`watch()` is a context manager to call them in. It yields a list, to which a line is added for all that a function
registers beside architectures, which are what it gives to `ModelRegistry.register_model`.

What a function registers is found out in a child process, and kept as inspections of classes are. In this process only
the functions are called whose package an architecture is wanted of, each once, and none that fails in a child.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import distributions
from .distributions import Distribution, Installation
from .entries import LazyRegisteredModel
from .errors import BrokenPlugin, PluginError
from .probe import ProbeResult, Question, probe
from .prober import Prober
from .registering import Registered, call

logger = logging.getLogger("bestiary.registry")


@dataclass(frozen=True, slots=True)
class Registrar:
    """One function: entry point `name` = `value` of `group`, to be called within `watcher`."""

    group: str
    name: str
    value: str
    distribution: Distribution
    watcher: str

    def question(self, contexts: Sequence[str]) -> Question:
        return Question(
            value=self.value,
            origin=f"dist {self.distribution}",
            kind="registrar",
            contexts=tuple(contexts),
            watcher=self.watcher,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarRow:
    """One function, for `models` and `doctor`. "unknown": nobody has looked yet."""

    distribution: str
    version: str
    group: str
    name: str
    entry_point: str
    status: Literal["ok", "broken", "unknown"]
    cause: str = ""
    architectures: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"architectures": list(self.architectures), "also": list(self.also)}


def registrars_of(installation: Installation) -> list[Registrar]:
    """All of them. Those of the wheel that names the group are left out: it is others' that it speaks for."""
    return [
        Registrar(group.name, entry.name, entry.value, distribution, group.value)
        for group, owner in installation.providers(distributions.REGISTRARS)
        for entry, distribution in installation.providers(group.name)
        if group.name not in distributions.GROUPS and distribution.name != owner.name
    ]


class Registrars:
    """What one registry knows of them."""

    def __init__(self, installation: Installation, prober: Prober) -> None:
        self.all = registrars_of(installation)
        self._prober = prober
        self._answers: dict[Registrar, ProbeResult] = {}
        self._called: dict[Registrar, Registered | PluginError] = {}
        for registrar in self.all:
            kept = prober.cache.get(registrar.distribution, registrar.question(()).key)
            if kept is not None:
                self._answers[registrar] = kept

    @property
    def unknown(self) -> list[Registrar]:
        """Those that nobody has asked yet."""
        return [registrar for registrar in self.all if registrar not in self._answers]

    def ask(self) -> bool:
        """Ask all unknown ones what they register, each in a copy of this process; whether there were any."""
        unknown = self.unknown
        for registrar in unknown:
            self._answer(registrar)
        return bool(unknown)

    def _answer(self, registrar: Registrar) -> ProbeResult:
        from .trial import ask

        if registrar not in self._answers:
            question = registrar.question(self._prober.contexts)
            answer = ask(question, registrar.distribution, self._prober.cache, self._prober.timeout_s)
            self._answers[registrar] = answer
        return self._answers[registrar]

    def probe(self) -> None:
        """Ask all unknown ones, each in a fresh child process."""
        from concurrent.futures import ThreadPoolExecutor

        timeout_s, unknown = self._prober.timeout_s, self.unknown

        def asked(registrar: Registrar) -> ProbeResult:
            return probe(registrar.question(self._prober.contexts), timeout_s=timeout_s)

        with ThreadPoolExecutor(max_workers=2) as pool:  # each may import torch: two are enough for any machine
            for registrar, answer in zip(unknown, pool.map(asked, unknown), strict=True):
                self._answers[registrar] = answer
                self._prober.cache.put(registrar.distribution, registrar.question(()).key, answer)

    def claims(self) -> list[LazyRegisteredModel]:
        """Which architectures are known to be registered. One that a package names in its metadata is not among its
        functions', and the last of several of a package counts."""
        found = {}
        for registrar in self.all:
            answer = self._answers.get(registrar)
            named = {entry.name for entry in registrar.distribution.group(distributions.MODELS)}
            for architecture, value in () if answer is None else answer.registered:
                if architecture not in named:
                    entry = LazyRegisteredModel(architecture, value, registrar.distribution, by_function=True)
                    found[registrar.distribution.name, architecture] = entry
        return list(found.values())

    def call_all_of(self, distribution: Distribution) -> dict[str, type | str]:
        """Call a distribution's functions here, those that were not yet, and return all architectures they registered.

        One that fails is left out, with a line in the log when it does.
        """
        found: dict[str, type | str] = {}
        for registrar in self.all:
            if registrar.distribution != distribution:
                continue
            if registrar not in self._called:
                self._called[registrar] = self._call(registrar)
            done = self._called[registrar]
            if isinstance(done, Registered):
                found |= done.models
        return found

    def _call(self, registrar: Registrar) -> Registered | PluginError:
        answer = self._answer(registrar)
        try:
            if answer.outcome != "ok":
                raise BrokenPlugin(answer.cause, field=registrar.value, details=answer.details)
            return call(registrar.value, f"dist {registrar.distribution}", registrar.watcher, self._prober.contexts)
        except PluginError as error:
            logger.warning("%s of %s is left out: %s", registrar.value, registrar.distribution, error.message)
            return error

    def causes(self, distribution: Distribution) -> list[str]:
        """Why a distribution's functions were left out."""
        of_it = [each for each in self.all if each.distribution == distribution]
        failed = [(each.value, self._called.get(each)) for each in of_it]
        return [f"{value}: {error.message}" for value, error in failed if isinstance(error, PluginError)]

    def failures(self) -> list[str]:
        """One line for each that is known to fail."""
        return [
            f"{row.entry_point} of {row.distribution}: {row.cause}" for row in self.rows() if row.status == "broken"
        ]

    def rows(self) -> list[RegistrarRow]:
        return [self._row(registrar) for registrar in self.all]

    def _row(self, registrar: Registrar) -> RegistrarRow:
        answer, done = self._answers.get(registrar), self._called.get(registrar)
        status: Literal["ok", "broken", "unknown"] = "unknown"
        cause = ""
        if answer is not None:
            status, cause = "ok" if answer.outcome == "ok" else "broken", answer.cause
        if isinstance(done, PluginError):
            status, cause = "broken", done.message
        return RegistrarRow(
            distribution=registrar.distribution.name,
            version=registrar.distribution.version,
            group=registrar.group,
            name=registrar.name,
            entry_point=registrar.value,
            status=status,
            cause=cause,
            architectures=() if answer is None else tuple(name for name, _ in answer.registered),
            also=() if answer is None else answer.also,
        )
