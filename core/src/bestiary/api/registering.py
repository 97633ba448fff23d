"""Calling a registrar: a function of a package that names architectures, through `ModelRegistry.register_model`.

While one runs, what it registers is its own, to be had by a `Registered`, and nothing of the process's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import BrokenPlugin
from .importing import entered, isolated, load_object

_collected: ContextVar[dict[str, type | str] | None] = ContextVar("collected", default=None)


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registrar registered.

    Attributes:
        models: architecture → a class, or ``"module:Class"``. also: a line for everything else.
    """

    models: Mapping[str, type | str]
    also: tuple[str, ...] = ()

    @property
    def references(self) -> dict[str, str]:
        """`models` with classes by name."""
        return {name: model if isinstance(model, str) else _reference(model) for name, model in self.models.items()}


def _reference(model: type) -> str:
    return f"{model.__module__}:{model.__qualname__}"


def collected() -> dict[str, type | str] | None:
    """Where the running registrar's architectures go; None where none runs."""
    return _collected.get()


@contextmanager
def _collecting() -> Iterator[dict[str, type | str]]:
    found: dict[str, type | str] = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def call(value: str, origin: str, watcher: str, contexts: Sequence[str] = ()) -> Registered:
    """Import the function ``"module:function"`` and call it, within what `watcher` (see `registrars.py`) makes.

    Raises:
        BrokenPlugin: for everything that it raises.
    """
    watch = load_object(watcher, origin)
    with isolated(origin, value), entered(contexts), watch() as also, _collecting() as found:
        function = load_object(value, origin)
        if not callable(function):
            raise BrokenPlugin(f"{value} is no function (from {origin})", field=value, limit="module:function")
        function()
    return Registered(found, tuple(str(line) for line in also))
