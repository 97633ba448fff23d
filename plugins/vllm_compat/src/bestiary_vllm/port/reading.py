"""One Python file as data: what it imports, which classes it defines, what it calls. Nothing of it is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from .errors import not_portable

_MAX_BYTES = 1 << 22

How = Literal["at once", "later", "optional"]


@dataclass(frozen=True, slots=True)
class Use:
    """One imported name, or a module where `name` is None.

    Attributes:
        module: absolute. level: the dots that it was written with. bound: what the file calls it.
        how: at once, when the file is imported; later, in a function or under a condition; or optional, since the file
            is prepared for an ImportError.
    """

    module: str
    name: str | None
    line: int
    level: int
    bound: str
    how: How


@dataclass(frozen=True)
class Source:
    """A parsed file of the package `package`, the names of whose modules relative imports are relative to."""

    path: Path
    package: str
    tree: ast.Module

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Every import that can happen at run time, in functions too; those for type checkers alone are left out."""
        return tuple(_uses(self.tree.body, self.package, "at once"))

    @cached_property
    def classes(self) -> tuple[ast.ClassDef, ...]:
        return tuple(each for each in self.tree.body if isinstance(each, ast.ClassDef))

    def calls(self) -> Iterator[tuple[Use, ast.Call]]:
        """Calls of imported names, by the name that they were bound to."""
        by_name = {use.bound: use for use in self.uses}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in by_name:
                yield by_name[node.func.id], node

    def attributes(self) -> Iterator[tuple[str, str, int]]:
        """``name.attribute`` of every plain name, with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield node.value.id, node.attr, node.lineno


def read(path: Path, package: str) -> Source:
    """Parse a file.

    Raises:
        BadTarget: NOT_PORTABLE, it cannot be read, is too large, or is not Python.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise not_portable(f"it cannot be read: {error.strerror}", value=str(path)) from error
    if len(data) > _MAX_BYTES:
        raise not_portable("it is too large for a model file", value=str(path), limit=f"{_MAX_BYTES} bytes")
    try:
        tree = ast.parse(data, str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise not_portable(f"it is not Python: {error}", value=str(path)) from error
    return Source(path, package, tree)


def _uses(body: list[ast.stmt], package: str, how: How) -> Iterator[Use]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield Use(alias.name, None, node.lineno, 0, bound, how)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            for alias in node.names:
                yield Use(module, alias.name, node.lineno, node.level, alias.asname or alias.name, how)
        elif isinstance(node, ast.If) and _is_for_typing(node.test):
            yield from _uses(node.orelse, package, how)
        elif isinstance(node, ast.Try):
            prepared = any(_catches_import_error(handler) for handler in node.handlers)
            yield from _uses(node.body, package, "optional" if prepared else how)
            for handler in node.handlers:
                yield from _uses(handler.body, package, how)
            yield from _uses([*node.orelse, *node.finalbody], package, how)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Match)
            inner_how: How = "later" if later and how == "at once" else how
            for field in ("body", "orelse", "cases"):
                inner = getattr(node, field, None)
                if isinstance(inner, list):
                    yield from _uses(_statements(inner), package, inner_how)


def _statements(found: list[ast.AST]) -> list[ast.stmt]:
    return [each for node in found for each in (node.body if isinstance(node, ast.match_case) else [node])]  # type: ignore[misc]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    above = package.split(".")
    kept = above[: len(above) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _is_for_typing(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
    return any(each is None or (isinstance(each, ast.Name) and each.id in names) for each in caught)
