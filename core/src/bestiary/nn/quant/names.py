"""Which layers of a checkpoint a model's layer stands for, and whether a list of names means one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from bestiary.nn.weights.mapper import WeightsMapper

_MOST = 64


def matches_any(name: str, entries: Iterable[str]) -> bool:
    """Whether an entry is `name`, or whole parts of it that follow one another.

    ``lm_head``, ``mlp.gate`` and ``model.layers.0`` mean what they say: ``mlp.gate`` is no ``mlp.gate_proj``. Writers
    of checkpoints disagree on whether entries are beginnings, ends or substrings; of whole parts all of them are.
    """
    inside = f".{name}."
    return any(f".{entry.strip('.')}." in inside for entry in entries)


def parts_of(layer: Any, prefix: str, fusions: Mapping[str, Collection[str]]) -> list[str]:
    """The full names of the layers fused in this one, by the model's names; itself where it is not fused.

    fusions: the model's `packed_modules_mapping`. An expert's fused layer knows its own (`fused_names`).
    """
    known: tuple[str, ...] = getattr(layer, "fused_names", ())
    if known:
        return list(known)
    head, dot, leaf = prefix.rpartition(".")
    return [f"{head}{dot}{part}" for part in fusions.get(leaf, (leaf,))]


def checkpoint_names(name: str, mappers: Iterable[WeightsMapper]) -> list[str]:
    """The names that a layer's tensors can have in a checkpoint whose names go through `mappers`, in this order.

    Found by undoing renames and keeping what is then renamed to `name`; regular expressions cannot be undone.
    """
    steps = list(mappers)
    found = [name]
    for mapper in reversed(steps):
        for candidate in found[:_MOST]:
            found += [each for each in _undone(candidate, mapper) if each not in found]
    right = [each for each in found[:_MOST] if _mapped(f"{each}.weight", steps) == f"{name}.weight"]
    return right or [name]


def _undone(name: str, mapper: WeightsMapper) -> Iterable[str]:
    """What `name` may have been before some of the mapper's renames."""
    found = [name]
    for old, new in [*mapper.orig_to_new_prefix.items()][::-1]:
        found += [old + each.removeprefix(new) for each in found[:_MOST] if new is not None and each.startswith(new)]
    for old, new in [*mapper.orig_to_new_substr.items()][::-1]:
        if new:  # a rename to nothing may have stood anywhere
            found += [f"{each}.".replace(new, old, 1)[:-1] for each in found[:_MOST] if new in f"{each}."]
    return found


def _mapped(name: str, mappers: Iterable[WeightsMapper]) -> str | None:
    current: str | None = name
    for mapper in mappers:
        current = None if current is None else mapper.map_name(current)
    return current
