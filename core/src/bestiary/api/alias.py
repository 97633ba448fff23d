"""An architecture that is another one under other names, as data: no class, no torch.

A distribution offers one through the entry-point group `bestiary_aliases`: the entry's name is the architecture as it
stands in `config.json`, its value `module:OBJECT`, the object an `Alias`. Importing it must not import torch.

    GARNET = Alias(
        architecture="LlamaForCausalLM",
        model_type="llama",
        config={"num_hidden_layers": "n_layers"},
        weights={"prefix": {"transformer.blocks.": "model.layers."}},
    )
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BrokenPlugin

RENAMES = ("regex", "substr", "prefix", "suffix")
"""The tables of `Alias.weights`, in the order in which they are applied."""

OWN_FIELDS = {"architectures": "the name is the entry point's", "model_type": "say model_type= instead"}
_JSON = (str, int, float, bool, list, dict, type(None))


@dataclass(frozen=True, kw_only=True, eq=False)
class Alias:
    """How checkpoints of one architecture become checkpoints of another, which has the class.

    Attributes:
        architecture: the other one, by the name its package registers (no alias itself).
        model_type: whose transformers configuration class the class expects; None keeps `config.json`'s own.
        config: fields that the class reads → their names in this architecture's `config.json`; a dot descends
            (``"rope.base"``). Every one must be in the file, under either name, unless `defaults` speaks of it.
        constants: fields that the class reads, with values that win over the file's.
        defaults: values for fields that a file lacks; None leaves the field out.
        weights: tables of renames, old → new, new None to drop a tensor on purpose: ``regex``, ``substr``, ``prefix``,
            ``suffix``, applied in this order, before the class's own renaming. As in `bestiary.nn.WeightsMapper`.

    Raises:
        BrokenPlugin: BAD_ALIAS, with everything that is wrong in it.
    """

    architecture: str
    model_type: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise BrokenPlugin(
                f"an Alias of {self.architecture!r:.64} is refused: {len(problems)} problem(s)",
                code="BAD_ALIAS",
                details=problems,
                fix="correct the Alias; its attributes are described in bestiary.api.alias",
            )


def _problems(alias: Alias) -> Iterator[str]:
    if not isinstance(alias.architecture, str) or not alias.architecture.isidentifier():
        yield "architecture: must be the name of a class"
    if not isinstance(alias.model_type, str | None) or alias.model_type == "":
        yield "model_type: must be a name or None"
    tables = {name: getattr(alias, name) for name in ("config", "constants", "defaults", "weights")}
    wrong = [name for name, table in tables.items() if not isinstance(table, Mapping)]
    yield from (f"{name}: must be a mapping, not {type(tables[name]).__name__}" for name in wrong)
    if not wrong:
        yield from _field_problems(alias)
        yield from _weight_problems(alias.weights)


def _field_problems(alias: Alias) -> Iterator[str]:
    for table in ("config", "constants", "defaults"):
        for name, value in getattr(alias, table).items():
            if not isinstance(name, str) or not name.isidentifier():
                yield f"{table}: {name!r:.64} is no name of a field"
            elif name in OWN_FIELDS:
                yield f"{table}: {name} cannot be set here; {OWN_FIELDS[name]}"
            elif table == "config" and not (isinstance(value, str) and all(value.split("."))):
                yield f"config[{name!r}]: must be the name of a field in config.json, not {value!r:.64}"
            elif not isinstance(value, _JSON):
                yield f"{table}[{name!r}]: must be what JSON can hold, not {type(value).__name__}"
    for other in ("config", "defaults"):
        for name in sorted(set(alias.constants) & set(getattr(alias, other)), key=str):
            yield f"constants[{name!r}]: {other} speaks of this field as well"


def _weight_problems(weights: Mapping[str, Any]) -> Iterator[str]:
    for kind, table in weights.items():
        if kind not in RENAMES:
            yield f"weights: {kind!r:.64} is none of {', '.join(RENAMES)}"
        elif not isinstance(table, Mapping):
            yield f"weights[{kind!r}]: must be a mapping, not {type(table).__name__}"
        else:
            wrong = {old for old, new in table.items() if not isinstance(old, str) or not isinstance(new, str | None)}
            yield from (f"weights[{kind!r}][{old!r:.64}]: must lead from a name to a name or None" for old in wrong)
            if not wrong:
                yield from _rename_problems(kind, table)


def _rename_problems(kind: str, table: Mapping[str, str | None]) -> Iterator[str]:
    earlier: list[str] = []
    for old, new in table.items():
        where = f"weights[{kind!r}][{old!r:.64}]"
        if kind == "regex":
            try:
                re.compile(old).sub(new or "", "")
            except (re.error, IndexError) as error:
                yield f"{where}: {error}"
        elif not old and kind == "substr":
            yield f"{where}: an empty name is found everywhere"
        else:
            covering = next((each for each in earlier if _covers(kind, each, table[each], old)), None)
            if covering is not None:
                yield f"{where}: never applies, since {covering!r:.64} takes its names before; put the longer one first"
        earlier.append(old)


def _covers(kind: str, earlier: str, new: str | None, later: str) -> bool:
    """Whether every name that `later` is meant for is renamed by `earlier` into one that `later` misses."""
    if kind == "prefix":
        renamed = (new or "") + later.removeprefix(earlier)
        return later.startswith(earlier) and (new is None or not renamed.startswith(later))
    if kind == "suffix":
        renamed = later.removesuffix(earlier) + (new or "")
        return later.endswith(earlier) and (new is None or not renamed.endswith(later))
    return earlier in later and (new is None or later not in later.replace(earlier, new, 1))
