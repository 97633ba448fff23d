"""Members of a protocol that a class inherits working: methods marked `provided`, values that are `derived`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def provided(method: Method) -> Method:
    """Marks a protocol's method as a working default that a class may inherit."""
    method.__bestiary_provided__ = True  # type: ignore[attr-defined]
    return method


class Derived:
    """A protocol's value that an inheriting instance computes when it is read, until it assigns one of its own."""

    __bestiary_provided__ = True

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self.compute(instance)


def derived(compute: Callable[[Any], Any]) -> Any:
    """`Derived`, with a type that fits every annotation."""
    return Derived(compute)


def counted(what: str) -> Any:
    """A number from the placement of the model's first layer of experts; 0 where there is no such layer."""
    return derived(lambda model: next((getattr(each.placement, what) for each in model.moe_layers), 0))
