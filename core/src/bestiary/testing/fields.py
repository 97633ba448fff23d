"""Which fields of the configuration a model file reads, and whether the variants would show it reading another."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
_ABSENT = object()


class Read(NamedTuple):
    """A line of a model file that reads a field."""

    field: str
    line: int


class Built(NamedTuple):
    """A model: its configuration's fields, absent ones having their default, and the reads that building it came to.

    reads: None where they are not known, which counts as all.
    """

    fields: Fields
    reads: frozenset[Read] | None = None


@contextmanager
def reads_by(package: str, config: Any) -> Iterator[set[Read]]:
    """Where modules of `package` read attributes of `config` meanwhile; not its own methods."""
    kind: Any = type(config)
    seen: set[Read] = set()

    def watched(self: object, name: str) -> Any:
        caller = sys._getframe(1)
        ours = caller.f_globals.get("__name__", "").partition(".")[0] == package
        if ours and caller.f_locals.get("self") is not self:
            seen.add(Read(name, caller.f_lineno))
        return kind.__getattribute__(self, name)

    object.__setattr__(config, "__class__", type(kind.__name__, (kind,), {"__getattribute__": watched}))
    try:
        yield seen
    finally:
        object.__setattr__(config, "__class__", kind)


def what_is_not_varied(config: Any, models: Sequence[Built]) -> Iterator[str]:
    """Reads that could be replaced without any of `models` showing it, one line each.

    Args:
        config: a configuration object. models: the base and every variant.
    """
    reads = sorted({read for model in models for read in model.reads or ()})
    defaults = _defaults(config)
    constant = {
        read: line
        for read in reads
        if (line := _constant(config, read.field, [each.fields for each in models if _comes_to(each, read)], defaults))
    }
    everywhere = {
        read.field for read in reads if all(other in constant for other in reads if other.field == read.field)
    }
    yield from dict.fromkeys(line for read, line in constant.items() if read.field in everywhere)
    yield from (f"line {read.line}: {line}" for read, line in constant.items() if read.field not in everywhere)
    names = list(dict.fromkeys(read.field for read in reads))
    yield from _same_numbers(config, names, [each.fields for each in models], defaults)
    if "head_dim" in names and _widths_agree([each.fields for each in models]):
        yield "head_dim × num_attention_heads = hidden_size in every variant: matrices the wrong way round would fit"


def _comes_to(model: Built, read: Read) -> bool:
    return model.reads is None or read in model.reads


def _constant(config: Any, name: str, models: Sequence[Fields], defaults: Fields) -> str | None:
    """What is wrong with a field that these models read; None where nothing is."""
    spellings = _spellings(config, name)
    if name not in defaults:
        given = all(spellings & fields.keys() for fields in models)
        if defaults and given and not hasattr(type(config), name):
            return f"{name} is given in every variant, but may be absent: what is done without it does not show"
        return None
    values = [_value(fields, spellings, defaults[name]) for fields in models]
    if any(value != defaults[name] for value in values):
        return None
    value = reprlib.repr(defaults[name])
    return f"{name} = {value} in every variant: its default written into the model file would not show"


def _same_numbers(config: Any, names: Sequence[str], models: Sequence[Fields], defaults: Fields) -> Iterator[str]:
    found = {}
    for name in names:
        values = [_value(fields, _spellings(config, name), defaults.get(name, _ABSENT)) for fields in models]
        if all(type(value) is int for value in values):
            found[name] = values
    for (one, values), (other, others) in combinations(found.items(), 2):
        if values == others:
            yield f"{one} and {other} are the same number in every variant: one read for the other would not show"


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
