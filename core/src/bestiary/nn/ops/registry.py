"""Ops: one typed function each, a plain torch reference, and a registration point for faster versions.

An `Op` is made by decorating its reference:

    @op
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

and called like the function it is. A faster version is offered under a name, says for a device and dtype whether it can
run, and is chosen once, when an engine starts (`bind`); a call then costs one attribute look-up. A version asked for
by name that cannot run is an error; nothing falls back silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from bestiary.api.errors import UsageError

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
    """One version of an op. `why_not(target)` is None where it can run, otherwise the reason in a few words."""

    name: str
    function: Callable[P, R]
    why_not: Callable[[Target], str | None] = _always
    priority: int = 0


class Op(Generic[P, R]):
    """A named op with its versions; `active` is the one in use."""

    def __init__(self, reference: Callable[P, R]) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.active = reference
        self.active_name = REFERENCE
        self.implementations: dict[str, Implementation[P, R]] = {
            REFERENCE: Implementation(REFERENCE, reference, priority=-100)
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.active(*args, **kwargs)

    def register(
        self, name: str, *, why_not: Callable[[Target], str | None] = _always, priority: int = 0
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Offer a version; the one with the highest priority that can run is chosen. A taken name is a `UsageError`."""

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            self.add(Implementation(name, function, why_not, priority))
            return function

        return decorate

    def add(self, implementation: Implementation[P, R]) -> None:
        """Offer a ready-made version; the same one may be offered again."""
        held = self.implementations.setdefault(implementation.name, implementation)
        if held is not implementation:
            raise UsageError(f"op {self.name} already has an implementation called {held.name}", field=self.name)

    def bind(self, target: Target, wanted: str | None = None) -> None:
        """Choose the version for `target`: the `wanted` one, or the best that can run there."""
        if wanted is not None:
            chosen = self._named(wanted, target)
        else:
            able = [impl for impl in self.implementations.values() if impl.why_not(target) is None]
            chosen = max(able, key=lambda impl: impl.priority)
        self.active, self.active_name = chosen.function, chosen.name

    def _named(self, wanted: str, target: Target) -> Implementation[P, R]:
        names = ", ".join(sorted(self.implementations))
        implementation = self.implementations.get(wanted)
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
NOTHING: Mapping[str, Any] = MappingProxyType({})


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make `reference` an op, listed in `OPS` under its own name."""
    made = Op(reference)
    OPS[made.name] = made
    return made


def bind_ops(target: Target, wanted: Mapping[str, str], offered: Mapping[str, Any] = NOTHING) -> dict[str, str]:
    """Choose the version of every op for `target`; return op → chosen name. Unknown op names are a `UsageError`.

    `offered` is what hooks bring: ``"op/name"`` → an `Implementation`, or a function that runs everywhere.
    """
    _refuse_unknown([*wanted, *(each.partition("/")[0] for each in offered)])
    for label, value in offered.items():
        name, _, version = label.partition("/")
        OPS[name].add(value if isinstance(value, Implementation) else Implementation(version, value))
    for name, each in OPS.items():
        each.bind(target, wanted.get(name))
    return {name: each.active_name for name, each in OPS.items()}


def _refuse_unknown(names: Iterable[str]) -> None:
    for name in names:
        if name not in OPS:
            raise UsageError(f"there is no op {name!r}", field=name, limit=f"one of {', '.join(sorted(OPS))}")
