"""Which error codes the source can raise, read from it: `raised(root)`.

A code is a constant in capitals that reaches an error: as ``code=``, as an argument that a function calls `code`, as
what a function returns that is asked for one, as the class's own, as ``"code"`` of an error written as data, or before
the colon of an answer's last words (``"OUT_OF_MEMORY: …"``). Codes that are passed on (``error.error_code``,
``told["code"]``) were raised elsewhere. Anything else that is given as a code is a problem: it cannot be looked up.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CODE = re.compile(r"[A-Z][A-Z0-9_]{3,}")
LAST_WORDS = re.compile(r"([A-Z][A-Z0-9_]{3,}): \w")
_CHECKS = ("isinstance", "issubclass")


@dataclass
class Found:
    """`raised`: code → where. `problems`: places whose code could not be read."""

    raised: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def class_codes(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Error class → the code it has by itself."""
    found = {}
    for node in (each for tree in trees for each in tree.body if isinstance(each, ast.ClassDef)):
        for each in node.body:
            match each:
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                    found[node.name] = code
    return found


def raised(root: Path) -> Found:
    """All codes of core and of the plugins beside it."""
    sources = {file: ast.parse(file.read_text("utf-8"))
               for file in sorted([*root.glob("core/src/**/*.py"), *root.glob("plugins/*/src/**/*.py")])}  # fmt: skip
    own = class_codes(sources.values())
    shared = {name: value for tree in sources.values() for name, value in _assigned(tree.body)}
    found = Found()
    for file, tree in sources.items():
        if file.name == "errors.py" and file.parent.name == "api":
            continue
        module = _Module(tree, own, shared)
        for line, code in module.codes():
            where = f"{file.relative_to(root)}:{line}"
            if code is None:
                found.problems.append(where)
            else:
                found.raised.setdefault(code, []).append(where)
    return found


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of assignments, those of tuples element by element."""
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
                yield from ((name.id, each) for name, each in zip(names, values, strict=True) if _is_name(name))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _hands_on(function: ast.FunctionDef) -> bool:
    keywords = (each for node in ast.walk(function) if isinstance(node, ast.Call) for each in node.keywords)
    return any(each.arg == "code" and ast.unparse(each.value) == "code" for each in keywords)


class _Module:
    def __init__(self, tree: ast.Module, own: dict[str, str], shared: dict[str, ast.expr]) -> None:
        self.nodes = list(ast.walk(tree))
        self.own, self.shared = own, shared
        self.values: dict[str, list[ast.expr]] = {}
        for name, value in _assigned([node for node in self.nodes if isinstance(node, ast.stmt)]):
            self.values.setdefault(name, []).append(value)
        self.takes = dict(self._takes())
        self.functions = {node.name: node for node in self.nodes if isinstance(node, ast.FunctionDef)}
        self.prose = {id(node.value) for node in self.nodes if isinstance(node, ast.Expr)}

    def _takes(self) -> Iterator[tuple[str, int]]:
        """Functions that hand a parameter `code` to an error → its place among the arguments, without `self`."""
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef) and _hands_on(node):
                names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg not in ("self", "cls")]
                if "code" in [*names, *(arg.arg for arg in node.args.kwonlyargs)]:
                    yield node.name, names.index("code") if "code" in names else len(names)

    def codes(self) -> Iterator[tuple[int, str | None]]:
        for node in self.nodes:
            match node:
                case ast.Constant(value=str(text)) if id(node) not in self.prose and (said := LAST_WORDS.match(text)):
                    yield node.lineno, said[1]
                case ast.Call(func=ast.Name(id="SampledToken"), keywords=keywords):
                    for each in keywords:
                        match each:
                            case ast.keyword(arg="error", value=ast.Constant(value=str(word))):
                                yield node.lineno, word.partition(":")[0].upper()
                case ast.Call(func=func, args=args, keywords=keywords):
                    called = ast.unparse(func).rpartition(".")[2]
                    if called in self.own or called in self.takes:
                        given = [each.value for each in keywords if each.arg == "code"]
                        given += args[self.takes[called] :][:1] if called in self.takes else []
                        yield from ((node.lineno, code) for each in given for code in self._read(each))
                        if called in self.own and not given:
                            yield node.lineno, self.own[called]
                    if called not in _CHECKS:
                        others = [*args, *(each.value for each in keywords)]
                        yield from ((node.lineno, self.own[each.id]) for each in others
                                    if isinstance(each, ast.Name) and each.id in self.own)  # fmt: skip
                case ast.Dict(keys=keys, values=values):
                    for key, value in zip(keys, values, strict=True):
                        match key, value:
                            case ast.Constant(value="code"), ast.Constant(value=str(code)) if CODE.fullmatch(code):
                                yield node.lineno, code

    def _read(self, node: ast.expr) -> Iterator[str | None]:
        """The codes an expression may be; nothing for one that is passed on, None for what cannot be read."""
        match node:
            case ast.Constant(value=None) | ast.Attribute(attr="error_code" | "code"):
                return
            case ast.Subscript(slice=ast.Constant(value="code")):
                return
            case ast.Constant(value=str(code)) if CODE.fullmatch(code):
                yield code
            case ast.IfExp(body=body, orelse=other):
                yield from self._read(body)
                yield from self._read(other)
            case ast.Name(id=name) if name in self.values or name in self.shared:
                for value in self.values.get(name) or [self.shared[name]]:
                    yield from self._read(value)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                for each in ast.walk(self.functions[name]):
                    if isinstance(each, ast.Return) and each.value is not None:
                        yield from self._read(each.value)
            case ast.Call(func=ast.Attribute(attr="upper")):
                return  # the word an answer ended with: read where it is said
            case ast.Name(id="code") if self.takes:
                return  # a parameter: read where the function is called
            case _:
                yield None
