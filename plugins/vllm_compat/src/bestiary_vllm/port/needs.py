"""What files need of vLLM and of other packages, and which of that is served."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from bestiary.api.errors import BrokenPlugin
from bestiary.api.importing import load_object
from bestiary_vllm import modules, table

from .gathering import Gathered
from .reading import How, Source, Use

State = Literal["served", "older", "inert", "an error when used", "not served", "beside", "installed", "not installed"]
MISSING: tuple[State, ...] = ("not served", "not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One name (``"module:name"``, or a package) and where it is imported.

    Attributes:
        why: of what is older, does nothing, or is not there. how: the most pressing of its places' (`Use.how`).
        unknown_keywords: keyword arguments of its calls that what serves it does not take.
    """

    name: str
    state: State
    places: tuple[str, ...]
    why: str = ""
    how: How = "at once"
    unknown_keywords: tuple[str, ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether the files cannot even be imported for want of it."""
        return self.state in MISSING and self.how == "at once"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"missing": self.is_missing}


def needs_of(gathered: Gathered, models: Iterable[str]) -> list[Need]:
    """All needs, by state and name.

    Args:
        models: the modules that hold the models; what is not imported with them is needed later, at most.
    """
    own, at_once = gathered.own, gathered.imported_with(models)
    found: dict[str, list[tuple[Source, Use]]] = {}
    for module, source in gathered.sources.items():
        for use in _expanded(source):
            key = _key(use)
            if use.how == "at once" and module not in at_once:
                use = replace(use, how="later")
            if key is not None:
                found.setdefault(key, []).append((source, use))
    needs = [_need(key, places, own) for key, places in found.items()]
    return sorted(needs, key=lambda need: (not need.is_missing, need.state, need.name))


def _expanded(source: Source) -> Iterator[Use]:
    """Its imports; of a module of vLLM's that is imported as a whole, the names that are asked of it."""
    aliases = {}
    for use in source.uses:
        as_module = use.module if use.name is None else f"{use.module}.{use.name}"
        if use.module.partition(".")[0] == table.ROOT and as_module in table.modules():
            aliases[use.bound] = (as_module, use)
        yield use
    for name, attribute, line in source.attributes():
        if name in aliases:
            module, use = aliases[name]
            if module != table.ROOT:
                yield Use(module, attribute, line, 0, "", use.how)


def _key(use: Use) -> str | None:
    top = use.module.partition(".")[0]
    if top == table.ROOT:
        return use.module if use.name is None else f"{use.module}:{use.name}"
    return None if top in sys.stdlib_module_names or not top else top


def _need(key: str, places: list[tuple[Source, Use]], own: set[str]) -> Need:
    use = places[0][1]
    where = tuple(dict.fromkeys(f"{source.path.name}:{each.line}" for source, each in places))
    how = min((each.how for _, each in places), key=get_args(How).index)
    if key.partition(".")[0].partition(":")[0] != table.ROOT:
        beside = any(each == key or each.startswith(f"{key}.") for each in own)
        state: State = "beside" if beside else "installed" if _is_installed(key) else "not installed"
        why = "" if state != "not installed" else "a package that is not installed here"
        return Need(name=key, state=state, places=where, why=why, how=how)
    if use.module in own or (use.name is not None and f"{use.module}.{use.name}" in own):
        return Need(name=key, state="beside", places=where)
    state, why = _state(use)
    unknown = () if state in MISSING else tuple(_unknown_keywords(key, places))
    return Need(name=key, state=state, places=where, why=why, how=how, unknown_keywords=unknown)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _state(use: Use) -> tuple[State, str]:
    """Of a name or module of vLLM's: from the table."""
    if use.name is None or use.name == "*":
        served = use.module in table.modules()
        return ("served", "") if served else ("not served", "no module of this path is in the table")
    if f"{use.module}.{use.name}" in table.modules() or (use.module, use.name) == (table.ROOT, "__version__"):
        return "served", ""
    symbol = table.find(use.module, use.name)
    if symbol is not None and symbol.raises is not None:
        return "an error when used", symbol.raises
    if symbol is None or symbol.target is None:
        text = modules.missing(use.module, use.name, symbol)
        return "not served", text.removeprefix(f"{use.module}:{use.name} is not served by bestiary-vllm: ")
    try:
        load_object(symbol.target, "the table of symbols")
    except BrokenPlugin as error:
        return "not served", f"what stands for it cannot be had: {error.message}"
    if symbol.now is not None:
        return "older", f"now {symbol.now}"
    return ("inert", symbol.inert) if symbol.inert is not None else ("served", "")


def _unknown_keywords(key: str, places: list[tuple[Source, Use]]) -> Iterator[str]:
    module, _, name = key.partition(":")
    symbol = table.find(module, name) if name else None
    if symbol is None or symbol.target is None or symbol.raises is not None:
        return
    taken = _keywords(load_object(symbol.target, "the table of symbols"))
    if taken is None:
        return
    said = set()
    for source in {id(each): each for each, _ in places}.values():
        for use, call in source.calls():
            if f"{use.module}:{use.name}" == key:
                said |= {word.arg for word in call.keywords if word.arg is not None} - taken
    yield from sorted(said)


def _keywords(served: Any) -> set[str] | None:
    """The keyword arguments it takes; None where that cannot be known, or all are looked at by it itself."""
    from torch import nn

    if not callable(served):
        return None
    if isinstance(served, type) and served.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return set()
    try:
        parameters = inspect.signature(served).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return {each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY}
