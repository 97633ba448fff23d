"""The modules that stand at vLLM's paths: each name is looked up in the table when it is first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from bestiary.api.importing import split

from . import table
from .absent import absent
from .said import say_once
from .table import Symbol

VERSION = "0.33.0+bestiary"
"""What `vllm.__version__` says: the version whose spellings are the current ones here."""


class ServedModule(ModuleType):
    """A module at one of vLLM's paths."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"`{name}`, served by bestiary-vllm")
        self.__path__: list[str] = []  # every one may have modules below it
        self.__all__ = [each for each in table.modules().get(name, {}) if not each.startswith(("_", "*"))]
        if name == table.ROOT:
            self.__version__ = VERSION

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        symbol = table.find(self.__name__, name)
        if symbol is None or symbol.target is None:
            raise AttributeError(missing(self.__name__, name, symbol), name=name, obj=self)
        found = load(symbol)
        if symbol.now is None and symbol.inert is None:  # of those something is to be said whenever they are asked for
            self.__dict__[name] = found
        return found

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


def load(symbol: Symbol) -> Any:
    """The object that serves a symbol, with a line where newer versions spell it otherwise or it does nothing."""
    if symbol.now is not None:
        say_once(f"{symbol.path} is an older spelling: it is {symbol.now} now")
    if symbol.inert is not None:
        say_once(f"{symbol.path} does nothing here: {symbol.inert}")
    if symbol.raises is not None:
        return absent(symbol.path, symbol.raises)
    reference = split(symbol.target or "")
    if reference is None:
        raise ImportError(f"{symbol.path}: {symbol.target!r} is not module:object")
    found: Any = importlib.import_module(reference[0])
    for part in reference[1].split(".") if reference[1] else ():
        found = getattr(found, part)
    return found


def missing(module: str, name: str, symbol: Symbol | None) -> str:
    """Why a name cannot be had, in a sentence."""
    if symbol is not None and symbol.why_not is not None:
        return f"{module}:{name} is not served by bestiary-vllm: {symbol.why_not}"
    import difflib

    near = difflib.get_close_matches(name, table.modules().get(module, ()), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{module}:{name} is not served by bestiary-vllm: its table does not have it{hint}"
