"""The import finder, and who it answers.

Modules at vLLM's paths are given to code that is imported inside `serving()`, and later to the functions of that same
code; after `install()`, to everybody. Others find what they found before: nothing, or the real vLLM, and where that is
installed nothing is served at all. What was served leaves `sys.modules` when the last `serving()` ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

from . import table
from .modules import ServedModule, missing
from .older import adapt_classes


class Finder(MetaPathFinder, Loader):
    """Owns the served modules: each is made once a process."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        self.served: set[str] = set()  # the top packages whose code imported one
        self.depth = 0
        self.for_all = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != table.ROOT:
            return None
        importer = _importer()
        if not (self.for_all or self.depth or importer in self.served):
            return None
        if fullname not in table.modules():
            parent, _, name = fullname.rpartition(".")
            symbol = table.find(parent, name)
            raise ImportError(missing(parent, name, symbol), name=fullname)  # a `from` import would hide a ModuleNotFoundError
        if importer and importer not in (table.ROOT, __package__):
            self.served.add(importer)
        return ModuleSpec(fullname, self, origin="bestiary-vllm", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name not in self.modules:
            self.modules[spec.name] = ServedModule(spec.name)
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when they are asked for."""

    def withdraw(self) -> None:
        """Take the served modules out of `sys.modules`; who has imported names keeps them."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


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
        adapt_classes(sys.modules[name] for name in set(sys.modules) - known if name.partition(".")[0] != table.ROOT)
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


def _importer() -> str:
    """The top package of the code that is importing."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("importlib", "_frozen_importlib")):
            return str(name).partition(".")[0]
        frame = frame.f_back
    return ""
