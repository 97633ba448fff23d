"""Which files are ported: one model file with those beside it that it imports, or a whole package.

A lone file is read as if it lay among vLLM's own model files, for that is where one comes from; what it imports from
there is served, or lies beside it and comes along, unchanged. A package stays as it is, under its own name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bestiary_vllm import table
from bestiary_vllm.finder import MODELS

from .errors import not_portable
from .reading import Source, Use, read

OWN_MODELS = "bestiary_vllm.models."
"""The modules of this wheel that stand for model files of vLLM's."""
_LEFT_OUT = ("__pycache__", ".*", "*.pyc", "*.egg-info")
_MAX_FILES = 2000


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What is ported.

    Attributes:
        root: the module that the new package stands for: relative imports are resolved below it.
        sources: by absolute module. reexports: modules that relative imports need and vLLM's paths serve → their names.
        folder: the package, where a whole one is ported.
    """

    target: Path
    root: str
    sources: dict[str, Source]
    reexports: dict[str, set[str]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def first(self) -> dict[str, Source]:
        """What was asked for, without what comes along."""
        return self.sources if self.folder is not None else dict(list(self.sources.items())[:1])

    @property
    def own(self) -> set[str]:
        """Modules that the project holds, as files import them."""
        packages = {module.rpartition(".")[0] for module in self.sources}
        return {*self.sources, *(packages if self.folder is not None else ())}

    def imported_with(self, modules: Iterable[str]) -> set[str]:
        """The modules of the project that are imported when those are: with their packages, and what they import."""
        found: set[str] = set()
        queue = list(modules)
        while queue:
            module = queue.pop()
            if module in found or module not in self.sources:
                continue
            found.add(module)
            queue.append(module.rpartition(".")[0])
            for use in self.sources[module].uses:
                if use.how != "later":
                    queue += [use.module, f"{use.module}.{use.name}"]
        return found

    def place(self, module: str) -> Path:
        """Where a module's file lies, in the new package."""
        below = module.removeprefix(self.root).strip(".")
        path = Path(*below.split(".")) if below else Path()
        source = self.sources.get(module)
        is_package = source is not None and source.path.name == "__init__.py"
        return path / "__init__.py" if is_package else path.with_suffix(".py")


def gather(target: Path) -> Gathered:
    """Everything that `target` names.

    Raises:
        BadTarget: NOT_PORTABLE, it is neither a Python file nor a package, or not Python inside.
    """
    if target.is_file() and target.suffix == ".py":
        return _file(target)
    if (target / "__init__.py").is_file():
        return _package(target)
    if not target.exists():
        raise not_portable("no such file or folder", field="FILE_OR_PACKAGE", value=str(target))
    inner = sorted(each.parent.name for each in target.glob("*/__init__.py")) if target.is_dir() else []
    inner += sorted(f"src/{each.parent.name}" for each in target.glob("src/*/__init__.py")) if target.is_dir() else []
    raise not_portable(
        "this is neither a Python file nor a package",
        field="FILE_OR_PACKAGE", value=str(target), limit="a .py file, or a folder with an __init__.py",
        fix=f"name the package in it: {target / inner[0]}" if inner else None,
    )  # fmt: skip


def _file(target: Path) -> Gathered:
    first = read(target, MODELS)
    deepest = max((use.level for use in first.uses), default=0)
    root = MODELS.rsplit(".", max(deepest - 1, 0))[0]
    sources = {f"{MODELS}.{target.stem}": first}
    reexports: dict[str, set[str]] = {}
    in_vllm = target.resolve().parent.parts[-3:] == tuple(MODELS.split("."))
    queue = [first]
    while queue:
        for use in queue.pop().uses:
            module = _model_file(use)
            if module is not None and module not in sources:
                beside = _beside(target.parent, module)
                if beside is not None and (not _is_shared(module) or (use.level and not in_vllm)):
                    sources[module] = read(beside, MODELS if beside.name != "__init__.py" else module)
                    queue.append(sources[module])
            served = use.module if use.name is None or use.module != MODELS else f"{MODELS}.{use.name}"
            if use.level and served not in sources and use.module in table.modules():
                reexports.setdefault(served, set()).update({use.name} if use.name and served == use.module else set())
    return Gathered(target=target, root=root, sources=sources, reexports=reexports)


def _model_file(use: Use) -> str | None:
    """The module beside vLLM's model files that an import names."""
    module = f"{use.module}.{use.name}" if use.module == MODELS and use.name else use.module
    if not module.startswith(f"{MODELS}."):
        return None
    return f"{MODELS}.{module.removeprefix(f'{MODELS}.').partition('.')[0]}"


def _beside(folder: Path, module: str) -> Path | None:
    stem = module.rpartition(".")[2]
    candidates = (folder / f"{stem}.py", folder / stem / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _is_shared(module: str) -> bool:
    """Whether it is no model file, but what vLLM's model files share, and served."""
    served = table.modules().get(module, {})
    return any(not (each.target or "").startswith(OWN_MODELS) for each in served.values())


def _package(target: Path) -> Gathered:
    target = target.resolve()
    name = target.name
    if not name.isidentifier():
        raise not_portable("its name is no module's", field="FILE_OR_PACKAGE", value=name, limit="a Python identifier")
    files = sorted(each for each in target.rglob("*.py") if not _is_left_out(each.relative_to(target)))
    if len(files) > _MAX_FILES:
        raise not_portable("it has too many files", value=str(target), limit=f"{_MAX_FILES} Python files")
    sources = {}
    for path in files:
        parts = [name, *path.relative_to(target).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        sources[module] = read(path, module if is_package else ".".join(parts[:-1]))
    return Gathered(target=target, root=name, sources=sources, folder=target)


def _is_left_out(path: Path) -> bool:
    return bool(set(path.parts) & set(shutil.ignore_patterns(*_LEFT_OUT)("", list(path.parts))))


def copy(gathered: Gathered, package: Path) -> None:
    """The files as they are, byte for byte, into the folder of the new package."""
    if gathered.folder is not None:
        shutil.copytree(gathered.folder, package, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
        return
    for module, source in gathered.sources.items():
        place = package / gathered.place(module)
        if place.name == "__init__.py":
            shutil.copytree(source.path.parent, place.parent, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.path.read_bytes())
