"""The one table from vLLM's symbols to ours: `symbols/*.toml`, read once, and nothing imported.

A file holds a table for each module, and in it a line for each symbol::

    ["vllm.model_executor.layers.linear"]
    QKVParallelLinear = "bestiary.nn:QKVParallelLinear"                    # served by this object
    Thing = { is = "…", now = "vllm.other.module:Thing" }                  # the spelling of older versions
    Other = { is = "…", inert = "it matters on another vendor's GPUs" }    # there, and does nothing here
    Third = { why_not = "images are not read yet" }                        # known, and not served
    Fourth = { raises = "sparse attention is not computed yet" }           # there, and an error when it is used
    "*" = "bestiary_vllm.shims.environment"                                # all other names: that module's
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ROOT = "vllm"
ABSENT = "bestiary_vllm.absent:absent"


@dataclass(frozen=True, slots=True)
class Symbol:
    """One name of one of vLLM's modules.

    Attributes:
        target: the ``"module:object"`` (or module) that serves it; None where nothing does.
        now: how newer versions of vLLM spell it. inert: why it does nothing here. why_not: why it is not served.
        raises: why it is only a name, which files import beside what they use.
    """

    module: str
    name: str
    target: str | None
    now: str | None = None
    inert: str | None = None
    why_not: str | None = None
    raises: str | None = None

    @property
    def path(self) -> str:
        return f"{self.module}:{self.name}"


@cache
def modules() -> Mapping[str, Mapping[str, Symbol]]:
    """Every module that is served → its symbols by name."""
    found: dict[str, dict[str, Symbol]] = {ROOT: {}}
    for file in sorted(files(__package__).joinpath("symbols").iterdir(), key=lambda each: each.name):
        if file.name.endswith(".toml"):
            for module, names in tomllib.loads(file.read_text("utf-8")).items():
                found.setdefault(module, {}).update({name: _symbol(module, name, to) for name, to in names.items()})
    for module in list(found):
        for package in _packages_of(module):
            found.setdefault(package, {})
    return found


def symbols() -> Iterator[Symbol]:
    for names in modules().values():
        yield from names.values()


def find(module: str, name: str) -> Symbol | None:
    """What the table says of a name; a module among its names counts, and so does all that a ``"*"`` stands for."""
    names = modules().get(module, {})
    if name in names:
        return names[name]
    if f"{module}.{name}" in modules():
        return Symbol(module, name, f"{module}.{name}")
    rest = names.get("*")
    return None if rest is None or rest.target is None else Symbol(module, name, f"{rest.target}:{name}")


def _packages_of(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts)))


def _symbol(module: str, name: str, to: str | dict[str, str]) -> Symbol:
    if isinstance(to, str):
        return Symbol(module, name, to)
    unknown = to.keys() - {"is", "now", "inert", "why_not", "raises"}
    if unknown or len(to.keys() & {"is", "why_not", "raises"}) != 1:
        raise ValueError(f"{module}:{name}: a symbol has `is`, `why_not` or `raises`, not {sorted(to)}")
    target = ABSENT if "raises" in to else to.get("is")
    return Symbol(module, name, target, to.get("now"), to.get("inert"), to.get("why_not"), to.get("raises"))
