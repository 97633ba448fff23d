"""Ops: one typed function each, a plain torch reference, and a registration point for faster versions.

An `Op` is made by decorating its reference:

    @op
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

and called like the function it is. A faster version is offered under a name, says for a device and dtype whether it can
run, and is chosen once, when an engine starts (`choose_ops`). The choice is the engine's own: it is in force while that
engine loads its model and runs a step, so that two engines in one process do not change each other's results. A call
costs one attribute look-up. Engines in different threads take turns, step by step. A version asked for by name that
cannot run is an error; nothing falls back silently.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from bestiary.api.errors import UsageError

from .packed import PackedWeight

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Target:
    """What an implementation has to run on."""

    device: str
    dtype: torch.dtype
    deterministic: bool = False


def _always(target: Target) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Implementation(Generic[P, R]):
    """One version of an op.

    Attributes:
        why_not: ``why_not(target)`` is None where it can run, otherwise the reason in a few words.
        pack: makes of a layer's loaded weight the form that `function` reads best (`Op.pack`); None where that is the
            form that it has. The function takes plain weights as well.
        reorders: `pack` only puts a weight's bytes in another order, so that nothing else is chosen by whether there
            is one: neither which weights a model keeps nor their dtype.
    """

    name: str
    function: Callable[P, R]
    why_not: Callable[[Target], str | None] = _always
    priority: int = 0
    pack: Callable[..., PackedWeight | None] | None = None
    reorders: bool = False


class Op(Generic[P, R]):
    """A named op with its versions; `active` is the one in force, the reference outside every engine."""

    def __init__(self, reference: Callable[P, R]) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.active = reference
        self.active_pack: Callable[..., PackedWeight | None] | None = None
        self.implementations: dict[str, Implementation[P, R]] = {
            REFERENCE: Implementation(REFERENCE, reference, priority=-100)
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.active(*args, **kwargs)

    def pack(self, *weight: Any) -> PackedWeight | None:
        """A loaded weight, given as the op takes it, as the version in force reads it best; None to leave it."""
        return None if self.active_pack is None else self.active_pack(*weight)

    def register(
        self, name: str, *, why_not: Callable[[Target], str | None] = _always, priority: int = 0
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Offer a version; the one with the highest priority that can run is chosen. A taken name is a `UsageError`."""

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            self.add(Implementation(name, function, why_not, priority))
            return function

        return decorate

    def add(self, implementation: Implementation[P, R]) -> None:
        """Offer a ready-made version to everybody; the same one may be offered again."""
        self.implementations = self.known([implementation])

    def choose(
        self, target: Target, wanted: str | None = None, offered: Iterable[Implementation[P, R]] = ()
    ) -> Implementation[P, R]:
        """The version for `target`, of those known and `offered`: the `wanted` one, or the best that can run there."""
        known = self.known(offered)
        if wanted is not None:
            return self._named(wanted, target, known)
        able = [impl for impl in known.values() if impl.why_not(target) is None]
        return max(able, key=lambda impl: impl.priority)

    def known(self, offered: Iterable[Implementation[P, R]]) -> dict[str, Implementation[P, R]]:
        """Every version by its name, those `offered` included. Two of one name are a `UsageError`."""
        known = dict(self.implementations)
        for each in offered:
            if known.setdefault(each.name, each) != each:
                raise UsageError(f"op {self.name} already has an implementation called {each.name}", field=self.name)
        return known

    def _named(self, wanted: str, target: Target, known: Mapping[str, Implementation[P, R]]) -> Implementation[P, R]:
        names = ", ".join(sorted(known))
        implementation = known.get(wanted)
        if implementation is None:
            raise UsageError(
                f"op {self.name} has no implementation {wanted!r}", field=self.name, limit=f"one of {names}"
            )
        if reason := implementation.why_not(target):
            raise UsageError(
                f"{self.name}={wanted} cannot run here: {reason}", field=self.name, limit=f"one of {names}"
            )
        return implementation


OPS: dict[str, Op[..., Any]] = {}
_in_force = threading.RLock()
NOTHING: Mapping[str, Any] = MappingProxyType({})


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make `reference` an op, listed in `OPS` under its own name."""
    made = Op(reference)
    OPS[made.name] = made
    return made


@dataclass(frozen=True, slots=True)
class ChosenOps:
    """One engine's version of every op, by the op's name."""

    versions: Mapping[str, Implementation[..., Any]]

    @property
    def names(self) -> dict[str, str]:
        return {op_name: version.name for op_name, version in self.versions.items()}

    @property
    def packing(self) -> frozenset[str]:
        """The ops whose version has weights in a form of its own; not in another order."""
        packs = {name: version for name, version in self.versions.items() if version.pack is not None}
        return frozenset(name for name, version in packs.items() if not version.reorders)

    def of(self, each: Op[P, R]) -> Callable[P, R]:
        """The version of one op, for who calls it outside `active`; its reference where there is no choice."""
        version = self.versions.get(each.name)
        return each.reference if version is None else version.function

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts, these versions are in force; afterwards those from before. Other threads wait."""
        with _in_force:
            before = [(each, each.active, each.active_pack) for each in OPS.values()]
            for name, version in self.versions.items():
                OPS[name].active, OPS[name].active_pack = version.function, version.pack
            try:
                yield
            finally:
                for each, function, pack in before:
                    each.active, each.active_pack = function, pack


@contextmanager
def turn() -> Iterator[None]:
    """While it lasts, no other thread's engine computes."""
    with _in_force:
        yield


def choose_ops(target: Target, wanted: Mapping[str, str], offered: Mapping[str, Any] = NOTHING) -> ChosenOps:
    """The version of every op for `target`. Unknown op names are a `UsageError`.

    `offered` is what hooks bring: ``"op/name"`` → an `Implementation`, or a function that runs everywhere.
    """
    _refuse_unknown(wanted)
    versions = by_op(offered)
    return ChosenOps({name: each.choose(target, wanted.get(name), versions[name]) for name, each in OPS.items()})


def by_op(offered: Mapping[str, Any]) -> dict[str, list[Implementation[..., Any]]]:
    """What hooks bring, as for `choose_ops`, by the op; unknown ones are a `UsageError`."""
    _refuse_unknown(label.partition("/")[0] for label in offered)
    versions: dict[str, list[Implementation[..., Any]]] = {name: [] for name in OPS}
    for label, value in offered.items():
        name, _, version = label.partition("/")
        versions[name].append(value if isinstance(value, Implementation) else Implementation(version, value))
    return versions


def _refuse_unknown(names: Iterable[str]) -> None:
    for name in names:
        if name not in OPS:
            raise UsageError(f"there is no op {name!r}", field=name, limit=f"one of {', '.join(sorted(OPS))}")
