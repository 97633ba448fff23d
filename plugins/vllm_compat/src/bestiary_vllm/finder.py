"""The import finder, and who it answers.

Modules at vLLM's paths are given to code that is imported inside `serving()`, and later to the functions of that same
code; after `install()`, to everybody. Others find what they found before: nothing, or the real vLLM, and where that is
installed nothing is served at all. What was served leaves `sys.modules` when the last `serving()` ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

from . import table
from .modules import ServedModule, missing
from .older import adapt_classes

MODELS = f"{table.ROOT}.model_executor.models"
MARK = "VLLM_MODEL_FILES"
"""A package with this name set to true holds vLLM's own model files: to them, the others are those beside them."""


class Finder(MetaPathFinder, Loader):
    """Owns the served modules: each is made once a process."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        self.importers: set[str] = set()  # the modules that imported one
        self.served: set[str] = set()  # the top packages of those that were imported while there was serving
        self.depth = 0
        self.for_all = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != table.ROOT:
            return None
        importer, package = _importer()
        if not (self.for_all or self.depth or importer.partition(".")[0] in self.served):
            return None
        parent, _, name = fullname.rpartition(".")
        if parent == MODELS and _is_beside(package, name):
            return ModuleSpec(fullname, Neighbour(f"{package}.{name}"), origin="bestiary-vllm")
        if fullname not in table.modules():
            symbol = table.find(parent, name)
            raise ImportError(
                missing(parent, name, symbol), name=fullname
            )  # a `from` import would hide a ModuleNotFoundError
        self.importers.add(importer)
        return ModuleSpec(fullname, self, origin="bestiary-vllm", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name not in self.modules:
            self.modules[spec.name] = ServedModule(spec.name)
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when they are asked for."""

    def adopt(self, names: set[str]) -> None:
        """Modules were imported while there was serving: those that use served ones are served from now on."""
        mine = names & self.importers
        self.served.update(name.partition(".")[0] for name in mine)
        adapt_classes(sys.modules[name] for name in mine)

    def withdraw(self) -> None:
        """Take what is at vLLM's paths out of `sys.modules`; who has imported names keeps them."""
        for name in [name for name in sys.modules if name.partition(".")[0] == table.ROOT]:
            del sys.modules[name]


class Neighbour(Loader):
    """A model file of the importing package, at vLLM's path of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set that of the other path


_finder = Finder()


def real_vllm() -> bool:
    """Whether vLLM itself is installed; its location is looked for, and nothing imported."""
    spec = PathFinder.find_spec(table.ROOT)
    return spec is not None and spec.origin is not None  # a folder of that name is no package


@contextmanager
def serving() -> Iterator[None]:
    """Serve vLLM's paths to what is imported meanwhile. Does nothing where real vLLM is installed."""
    if real_vllm():
        yield
        return
    _activate()
    known = set(sys.modules)
    _finder.depth += 1
    try:
        yield
    finally:
        _finder.depth -= 1
        _finder.adopt(set(sys.modules) - known)
        if not _finder.depth and not _finder.for_all:
            _finder.withdraw()


def install() -> bool:
    """Serve vLLM's paths to the whole process; False where real vLLM is installed, which then is what one finds."""
    if real_vllm():
        return False
    _activate()
    _finder.for_all = True
    return True


def uninstall() -> None:
    """End what `install` began."""
    _finder.for_all = False
    if not _finder.depth:
        _finder.withdraw()


def _activate() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)  # last: whatever else is found comes first


def _importer() -> tuple[str, str]:
    """The module that is importing, and its package."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(("importlib", "_frozen_importlib")):
            return name, str(frame.f_globals.get("__package__") or name)
        frame = frame.f_back
    return "", ""


def _is_beside(package: str, name: str) -> bool:
    """Whether a package that says so has that other model file of vLLM's."""
    if not getattr(sys.modules.get(package), MARK, False):
        return False
    served = table.modules().get(f"{MODELS}.{name}", {})
    if any(not (each.target or "").startswith("bestiary_vllm.models.") for each in served.values()):
        return False  # no model file, but what model files share
    return importlib.util.find_spec(f"{package}.{name}") is not None
