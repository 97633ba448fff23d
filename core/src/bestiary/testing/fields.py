"""Which fields of the configuration a model file reads, and whether the variants would show it reading another."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

Fields = Mapping[str, Any]
_ABSENT = object()


@contextmanager
def reads_by(package: str, config: Any) -> Iterator[set[str]]:
    """Names of the attributes that modules of `package` read from `config` meanwhile."""
    kind: Any = type(config)
    seen: set[str] = set()

    def watched(self: object, name: str) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == package:
            seen.add(name)
        return kind.__getattribute__(self, name)

    object.__setattr__(config, "__class__", type(kind.__name__, (kind,), {"__getattribute__": watched}))
    try:
        yield seen
    finally:
        object.__setattr__(config, "__class__", kind)


def what_is_not_varied(config: Any, read: set[str], models: Sequence[Fields]) -> Iterator[str]:
    """Fields among `read` that could be replaced without any of `models` showing it, one line each.

    Args:
        config: the configuration object. models: fields of the base and of every variant; absent ones have the default.
    """
    defaults = _defaults(config)
    names = {name: _spellings(config, name) for name in sorted(read)}
    for name, spellings in names.items():
        if name not in defaults:
            if defaults and not hasattr(type(config), name) and all(spellings & fields.keys() for fields in models):
                yield f"{name}: given in every variant, though it may be absent: what is done without it does not show"
            continue
        values = [_value(fields, spellings, defaults[name]) for fields in models]
        if all(value == defaults[name] for value in values):
            value = reprlib.repr(defaults[name])
            yield f"{name} = {value} in every variant: its default written into the model file would not show"
    given = {name: [_value(fields, names[name], defaults.get(name, _ABSENT)) for fields in models] for name in names}
    numbers = {name: values for name, values in given.items() if all(type(value) is int for value in values)}
    for (one, values), (other, others) in combinations(numbers.items(), 2):
        if values == others:
            yield f"{one} and {other} are the same number in every variant: one read for the other would not show"
    if "head_dim" in read and _widths_agree(models):
        yield "head_dim × num_attention_heads = hidden_size in every variant: matrices the wrong way round would fit"


def _widths_agree(models: Sequence[Fields]) -> bool:
    """Whether the heads together are as wide as the model, in all that say so."""
    found = [[fields.get(name) for name in ("head_dim", "num_attention_heads", "hidden_size")] for fields in models]
    known = [(size * heads, hidden) for size, heads, hidden in found if size and heads and hidden]
    return bool(known) and all(width == hidden for width, hidden in known)


def _defaults(config: Any) -> dict[str, Any]:
    """Field → the value it has where `config.json` lacks it."""
    if dataclasses.is_dataclass(config):
        stated = {field.name: field.default for field in dataclasses.fields(config)}
        found = {name: _ABSENT if value is dataclasses.MISSING else value for name, value in stated.items()}
    else:
        found = {}
    try:
        return {**found, **vars(type(config)())}
    except (TypeError, ValueError):  # fields without a default
        return found


def _spellings(config: Any, name: str) -> set[str]:
    """The names under which `config.json` may give this attribute."""
    aliases: Mapping[str, str] = getattr(config, "attribute_map", {})
    field = aliases.get(name, name)
    return {name, field, *(alias for alias, target in aliases.items() if target == field)}


def _value(fields: Fields, spellings: set[str], default: Any) -> Any:
    return next((fields[name] for name in spellings if name in fields), default)
