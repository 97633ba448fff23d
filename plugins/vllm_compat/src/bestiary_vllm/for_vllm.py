"""The other direction: real vLLM is given architectures that are installed for Bestiary.

`register` is this wheel's entry point in ``vllm.general_plugins``. A model file is given when it uses only names that
vLLM has as well (`unfit` says why one is not). Under vLLM it is executed a second time, as ``bestiary_given.…``: there
its imports from `bestiary.nn` and `bestiary.api` find vLLM's own names, by the table of symbols read backwards. The
file is not changed, and what else is in the process keeps what it imported. A file that imports vLLM's paths itself
needs none of this, and is registered as it is. What vLLM has under the same name stays vLLM's.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from bestiary.api import discovery, distributions
from bestiary.api.errors import BadTarget
from bestiary.api.importing import split

from . import table
from .finder import real_vllm
from .port.reading import Source, Use, read

logger = logging.getLogger("bestiary")

GIVEN = "bestiary_given"
SHARED = ("bestiary.nn", "bestiary.api")


def register() -> None:
    """Give vLLM every architecture whose file it can run. Does nothing where real vLLM is not installed."""
    if not real_vllm():
        return
    registry = importlib.import_module(table.ROOT).ModelRegistry
    known = set(registry.get_supported_archs())
    for entry, distribution in discovery.scan().providers(distributions.MODELS):
        value, reasons = _value(entry.value)
        if entry.name in known:
            reasons = ["vLLM has one of this name"]
        if reasons:
            logger.info("%s of %s is not given to vLLM: %s", entry.name, distribution, "; ".join(reasons))
            continue
        registry.register_model(entry.name, value)
        known.add(entry.name)


def _value(value: str) -> tuple[str, list[str]]:
    """What is registered for an entry point's ``"module:Class"``, and what speaks against it."""
    reference = split(value)
    spec = None if reference is None else _find(reference[0])
    if reference is None or spec is None or spec.origin is None:
        return value, ["its file is not found"]
    try:
        files = list(_files(reference[0], Path(spec.origin)))
    except BadTarget as error:
        return value, [f"{error.message}: {error.value}"]
    if not any(_is_ours(use) for source in files for use in source.uses):
        return value, []
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # first: the folders of given packages are known to the usual finder as well
    return f"{GIVEN}.{value}", list(unfit(files, reference[1]))


def unfit(files: Sequence[Source], model: str) -> Iterator[str]:
    """Why real vLLM cannot run the class `model` of the first of `files`, whose others it imports relatively.

    Names are looked at, and what vLLM's engine demands of every model; attributes of layers are not.
    """
    for source in files:
        for use in source.uses:
            if _is_ours(use) and (use.module not in SHARED or use.name not in homes()):
                yield f"vLLM has nothing like {use.module}{'' if use.name is None else f'.{use.name}'}"
        for use, call in source.calls():
            if _is_ours(use) and "Attention" in str(use.name) and all(word.arg != "prefix" for word in call.keywords):
                yield f"{use.name} is built without prefix= (line {call.lineno}), by which vLLM tells layers apart"
    classes = {each.name: each for source in files for each in source.classes}
    if not _defines(classes, model, "load_weights"):
        yield f"{model} has no load_weights: it leaves that to Bestiary"


def _defines(classes: Mapping[str, ast.ClassDef], name: str, method: str) -> bool:
    """Whether a class, or one of its bases in these files, defines a method."""
    if name not in classes:
        return False
    own = classes[name]
    if any(isinstance(each, ast.FunctionDef) and each.name == method for each in own.body):
        return True
    bases = [each.id for each in own.bases if isinstance(each, ast.Name) and each.id != name]
    return any(_defines(classes, base, method) for base in bases)


@cache
def homes() -> dict[str, tuple[str, str]]:
    """A name of `bestiary.nn` or `bestiary.api` → the (module, name) under which vLLM has it now."""
    found: dict[str, tuple[str, str]] = {}
    for symbol in sorted(table.symbols(), key=lambda each: (each.module.count("."), each.module)):
        if symbol.target is None or symbol.now or symbol.inert or symbol.raises:
            continue
        module, _, name = symbol.target.partition(":")
        ours = name if module.startswith(SHARED) else symbol.name
        if ours == symbol.name:
            found.setdefault(ours, (symbol.module, symbol.name))
    return found


def _is_ours(use: Use) -> bool:
    return use.module.partition(".")[0] == "bestiary"


def _files(module: str, path: Path) -> Iterator[Source]:
    """A module's file and those that it imports relatively, each once."""
    queue, seen = [(module, path)], {module}
    while queue:
        name, origin = queue.pop(0)
        source = read(origin, name if origin.name == "__init__.py" else name.rpartition(".")[0])
        yield source
        for use in source.uses:
            for other in (use.module, f"{use.module}.{use.name}") if use.level else ():
                spec = None if other in seen else _find(other)
                if spec is not None and spec.origin is not None:
                    seen.add(other)
                    queue.append((other, Path(spec.origin)))


def _find(module: str) -> ModuleSpec | None:
    """Where a module lies, found without importing its packages."""
    path: Sequence[str] | None = None
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


class _Finder(MetaPathFinder):
    """Finds ``bestiary_given.module`` where `module` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == GIVEN:
            return ModuleSpec(GIVEN, None, is_package=True)
        if not fullname.startswith(f"{GIVEN}."):
            return None
        spec = _find(fullname.removeprefix(f"{GIVEN}."))
        if spec is None or spec.origin is None:
            return None
        return spec_from_file_location(
            fullname,
            spec.origin,
            loader=_Loader(fullname, spec.origin),
            submodule_search_locations=spec.submodule_search_locations,
        )


class _Loader(SourceFileLoader):
    """Executes a file whose import statements are `_import`'s."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": _import}
        super().exec_module(module)


_finder = _Finder()


class _Alias(ModuleType):
    """`bestiary.nn` or `bestiary.api` as a given file sees it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"vLLM has nothing like {self.__name__}.{name}", name=name, obj=self)
        module, own = homes()[name]
        return getattr(importlib.import_module(module), own)


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    if level == 0 and name in SHARED and fromlist:
        return _Alias(name)
    return builtins.__import__(name, globals, locals, fromlist, level)
