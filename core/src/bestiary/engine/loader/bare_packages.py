"""transformers without its `__init__`, for as long as a configuration class is imported.

Its `__init__` modules read all of the library's 3,300 source files, twice, for the names in them: a third of the time
until a configuration is there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PATIENCE = 60.0
"""Seconds that another thread waits for the packages to be the real ones again."""


class BarePackage(ModuleType):
    """A package without contents, in the place of the real one until `over` is set.

    Who has it by then finds in it what the real one has. Another thread that asks meanwhile waits for that.
    """

    def __init__(self, name: str, folders: list[str], version: str) -> None:
        super().__init__(name)
        self.__path__, self.__version__ = folders, version
        self.__dict__.update(over=threading.Event(), owner=threading.get_ident())

    def __getattr__(self, name: str) -> Any:
        over: threading.Event = self.__dict__["over"]
        waits = self.__dict__["owner"] != threading.get_ident()
        if name.startswith("__") or not (over.is_set() or (waits and over.wait(PATIENCE))):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def bare_packages() -> Iterator[None]:
    """While it lasts, `transformers` and `transformers.models` are `BarePackage`s, unless they are imported already.
    Whoever imports transformers later gets the real ones."""
    spec = None if "transformers" in sys.modules else importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        yield
        return
    folders = list(spec.submodule_search_locations)
    inner = [str(Path(folder) / "models") for folder in folders]
    made = [
        BarePackage("transformers", folders, importlib.metadata.version("transformers")),
        BarePackage("transformers.models", inner, ""),
    ]
    sys.modules.update({each.__name__: each for each in made})
    try:
        yield
    finally:
        for each in made:
            if sys.modules.get(each.__name__) is each:
                del sys.modules[each.__name__]
            each.over.set()
