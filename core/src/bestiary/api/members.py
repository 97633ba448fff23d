"""Looking for a protocol's members in a class or an instance, without calling anything.

A member counts when the class (or a base that is not a protocol) wrote it, a constructor assigns it, or the protocol
provides it on purpose; `torch.nn.Module`'s placeholders do not count. torch is not imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from .protocols import VllmModel
from .provided import Derived
from .signatures import assigned_names, bound_signature, declaration, mismatches

_MISSING = object()
_METHODS = (FunctionType, classmethod, staticmethod)


@dataclass(frozen=True, slots=True)
class Problem:
    """One member that is not as its protocol declares it."""

    protocol: str
    member: str
    what: str
    expected: str

    def __str__(self) -> str:
        return f"{self.protocol}.{self.member} {self.what}; expected: {self.expected}"


def check(subject: object, protocol: type) -> list[Problem]:
    """Everything that keeps `subject`, a class or an instance, from fulfilling `protocol`; empty when it does."""
    found: list[Problem] = []
    for declared_in, name, expected in _members(protocol):
        if isinstance(expected, _METHODS):
            text = declaration(name, expected)
            problems = _check_method(subject, name, expected)
        else:
            annotation, default = expected
            computed = isinstance(default, Derived)
            text = f"{name}: {annotation}" + ("" if default is _MISSING or computed else f" = {default!r}")
            optional = default is not _MISSING and not computed and "Literal[True]" not in annotation
            problems = _check_value(subject, name, annotation, optional=optional)
        found += [Problem(declared_in, name, what, text) for what in problems]
    return found


def claims(subject: object, marker: str) -> bool:
    """Whether it says so; `check` says whether it is so."""
    return find(subject, marker, inherit_values=True) is True


def _members(protocol: type) -> Iterator[tuple[str, str, Any]]:
    """(protocol, member, its method | (annotation, default)) for all that `protocol` and its bases declare."""
    for base in protocol.__mro__:
        if not _is_protocol(base):
            continue
        annotations = inspect.get_annotations(base)
        for name, annotation in annotations.items():
            yield base.__name__, name, (str(annotation), base.__dict__.get(name, _MISSING))
        for name, member in base.__dict__.items():
            if isinstance(member, _METHODS) and (name == "__init__" or not name.startswith("_")):
                if name == "__init__" and member.__module__ != base.__module__:
                    continue  # the placeholder that typing gives every protocol
                yield base.__name__, name, member


def _is_protocol(cls: type) -> bool:
    """Whether it is a protocol that lists members (`typing.Protocol` itself does not)."""
    return bool(cls.__dict__.get("_is_protocol")) and cls.__module__ != "typing"


def _is_placeholder(owner: type, name: str) -> bool:
    """Members that say only "nobody wrote this one": `object`'s and `torch.nn.Module`'s."""
    return owner is object or (name in ("__init__", "forward") and owner.__module__ == "torch.nn.modules.module")


def find(subject: object, name: str, *, inherit_values: bool) -> Any:
    """The member as it lies in its class (or instance), not counting bare declarations; `_MISSING` if there is none."""
    cls = subject if isinstance(subject, type) else type(subject)
    if subject is not cls:
        own = getattr(subject, "__dict__", {})
        if name in own:
            return own[name]
    for owner in cls.__mro__:
        if name not in owner.__dict__ or _is_placeholder(owner, name):
            continue
        member = owner.__dict__[name]
        declared_only = _is_protocol(owner) or owner.__module__ == "typing"
        if declared_only and not inherit_values and not getattr(member, "__bestiary_provided__", False):
            continue
        return member
    return _MISSING


def _check_method(subject: object, name: str, expected: Any) -> Iterator[str]:
    member = find(subject, name, inherit_values=False)
    if member is _MISSING:
        if name == "__init__" or not _exists_otherwise(subject, name):
            yield "is missing"
    elif isinstance(member, property):
        yield from _read_problem(subject, name)
    elif not callable(member) and not isinstance(member, _METHODS):
        yield f"is {type(member).__name__}, not a method"
    else:
        base = VllmModel.__dict__.get(name)
        yield from mismatches(expected, member, passed=() if base is None else _parameters(base))


def _parameters(method: Any) -> frozenset[str]:
    signature = bound_signature(method)
    return frozenset() if signature is None else frozenset(signature.parameters)


def _check_value(subject: object, name: str, annotation: str, *, optional: bool) -> Iterator[str]:
    """`optional`: the protocol has a default, which holds also for a class that does not inherit it."""
    member = find(subject, name, inherit_values=True)
    if member is _MISSING:
        if not optional and not _exists_otherwise(subject, name):
            yield "is missing"
        return
    descriptor = hasattr(type(member), "__get__")
    if not descriptor:
        yield from _wrong_value(annotation, member)
    elif not (isinstance(subject, type) and isinstance(member, property)):
        yield from _read_problem(subject, name, annotation)


def _exists_otherwise(subject: object, name: str) -> bool:
    """A member that no class body holds: assigned by a constructor, or a submodule of an instance."""
    if isinstance(subject, type):
        return name in assigned_names(subject)
    stores = (getattr(subject, store, None) for store in ("_modules", "_parameters", "_buffers"))
    return any(isinstance(store, dict) and name in store for store in stores)


def _read_problem(subject: object, name: str, annotation: str = "") -> Iterator[str]:
    if isinstance(subject, type) and isinstance(inspect.getattr_static(subject, name, None), property):
        return
    try:
        value = getattr(subject, name)
    except Exception as error:  # whatever a plugin's property raises is a finding, not ours to handle
        yield f"raises {type(error).__name__}: {error}"
    else:
        yield from _wrong_value(annotation, value)


def _wrong_value(annotation: str, value: object) -> Iterator[str]:
    rule = next((rule for text, rule in _VALUE_RULES.items() if text in annotation), None)
    if rule is not None and not rule(value):
        yield f"is {value!r:.64}"


def _str_lists(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        for key, names in value.items()
    )


_VALUE_RULES: Mapping[str, Callable[[object], bool]] = {
    "Literal[True]": lambda value: value is True,
    "dict[str, list[str]]": _str_lists,
    "dict[str, str]": lambda value: (
        isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    ),
    "bool": lambda value: isinstance(value, bool),
}
