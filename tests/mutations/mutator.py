"""Every small mistake of a few kinds that can be made in a model file, found in its syntax tree.

A mutant is one edit of the text, so what it changed reads as one would have written it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

Function = ast.FunctionDef | ast.Lambda


class Mutant(NamedTuple):
    """where: ``Class.method``. old, new: the changed text. source: the whole file with the change."""

    where: str
    line: int
    old: str
    new: str
    source: str

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}: {self.old} → {self.new}"


class Place(NamedTuple):
    """A node that may be changed, its parents from the module downwards, and where it stands."""

    node: ast.AST
    parents: tuple[ast.AST, ...]

    @property
    def parent(self) -> ast.AST:
        return self.parents[-1]

    @property
    def where(self) -> str:
        named = [each.name for each in self.parents if isinstance(each, ast.ClassDef | ast.FunctionDef)]
        return ".".join(named)

    def within(self, kind: Any) -> Any:
        """The nearest parent of this kind, or None."""
        return next((each for each in reversed(self.parents) if isinstance(each, kind)), None)


class File(NamedTuple):
    """What the rules know beside the node: the whole tree, and each configuration field's default value."""

    tree: ast.Module
    defaults: Mapping[str, Any]


Rule = Callable[[Place, File], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def mutants(source: str, defaults: Mapping[str, Any]) -> list[Mutant]:
    """All mutants of a file, each text once. defaults: configuration field → the value that its class gives it."""
    file = File(ast.parse(source), defaults)
    found: dict[str, Mutant] = {source: Mutant("", 0, "", "", source)}
    for place in _places(file.tree, ()):
        for rewrite in RULES:
            for new in rewrite(place, file):
                made = _edited(source, place, new)
                if made is not None:
                    found.setdefault(made.source, made)
    return list(found.values())[1:]


def _places(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[Place]:
    """Nodes that are computed: no imports, no annotations, no docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom) or _is_typing_only(child) or _is_docstring(child):
            continue
        if child in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            continue
        yield Place(child, (*parents, node))
        yield from _places(child, (*parents, node))


def _is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _edited(source: str, place: Place, new: str) -> Mutant | None:
    """The file with the node's text replaced; None where that is no Python."""
    node: Any = place.node
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    data = source.encode()
    text = (data[:start] + new.encode() + data[end:]).decode()
    try:
        ast.parse(text)
    except SyntaxError:
        return None
    old = " ".join(data[start:end].decode().split())
    return Mutant(place.where, node.lineno, old, new, text)


def _with(node: ast.AST, **changed: Any) -> str:
    """The node's text with some of its fields replaced."""
    kept = dict(ast.iter_fields(node))
    made = type(node)(**kept | changed)
    text = ast.unparse(ast.fix_missing_locations(made))
    return f"({text})" if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.UnaryOp) else text


@rule
def constants(place: Place, _file: File) -> Iterator[str]:
    """Truths flipped, numbers one more and twice as large, names misspelt."""
    if not isinstance(place.node, ast.Constant):
        return
    value = place.node.value
    if isinstance(value, bool):
        yield repr(not value)
    elif isinstance(value, int):
        yield repr(value + 1)
        yield repr(2 * value)
    elif isinstance(value, float):
        yield repr(2 * value)
    elif isinstance(value, str):
        yield repr(value + "_")


_OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
}


@rule
def operators(place: Place, _file: File) -> Iterator[str]:
    """Another operator, either operand alone, a sign lost."""
    node = place.node
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.BitOr):
        for other in _OPERATORS[type(node.op)]:
            yield _with(node, op=other())
        yield ast.unparse(node.left)
        yield ast.unparse(node.right)
    elif isinstance(node, ast.UnaryOp):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.AugAssign):
        yield f"{ast.unparse(node.target)} = {ast.unparse(node.value)}"


_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq, ast.GtE, ast.LtE),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}


@rule
def decisions(place: Place, _file: File) -> Iterator[str]:
    """Comparisons turned and loosened, conditions always or never true, one side of `and` and `or`."""
    node = place.node
    if isinstance(node, ast.Compare):
        named = isinstance(node.comparators[0], ast.Constant) and isinstance(node.comparators[0].value, str)
        for other in _COMPARISONS[type(node.ops[0])][: 1 if named else None]:
            yield _with(node, ops=[other()])
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from (ast.unparse(each) for each in node.values)
    elif isinstance(node, ast.IfExp):
        yield ast.unparse(node.body)
        yield ast.unparse(node.orelse)
        yield _with(node, body=node.orelse, orelse=node.body)
    if isinstance(place.parent, ast.If) and place.parent.test is node:
        yield from ("True", "False", f"not ({ast.unparse(node)})")


@rule
def arguments(place: Place, _file: File) -> Iterator[str]:
    """One argument dropped, two neighbours exchanged; a call or a method left out, its argument in its place."""
    node = place.node
    if not isinstance(node, ast.Call):
        return
    for at in range(len(node.keywords)):
        yield _with(node, keywords=[*node.keywords[:at], *node.keywords[at + 1 :]])
    yield from (_with(node, args=args) for args in _exchanged(node.args))
    for one, other in pairwise(node.keywords):
        values = {one.arg: other.value, other.arg: one.value}
        changed = [ast.keyword(each.arg, values.get(each.arg, each.value)) for each in node.keywords]
        yield _with(node, keywords=changed)
    given = [ast.unparse(each) for each in node.args]
    if isinstance(node.func, ast.Attribute) and not _is_self(node.func):
        given = given[:1] or [ast.unparse(node.func.value)]
        yield ast.unparse(node.func.value)
    if given and _unpacked(place):
        yield f"({given[0]}, {given[1] if len(given) > 1 else None})"
    elif given:
        yield from given


def _exchanged(items: list[Any]) -> Iterator[list[Any]]:
    for at in range(len(items) - 1):
        yield [*items[:at], items[at + 1], items[at], *items[at + 2 :]]


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _unpacked(place: Place) -> bool:
    return isinstance(place.parent, ast.Assign) and isinstance(place.parent.targets[0], ast.Tuple)


@rule
def orders(place: Place, _file: File) -> Iterator[str]:
    """Two neighbours of a list or tuple exchanged, one of a list, tuple or dictionary dropped, its values exchanged."""
    node = place.node
    if isinstance(node, ast.List | ast.Tuple):
        for changed in _exchanged(node.elts):
            yield _with(node, elts=changed)
        for at in range(len(node.elts)):
            yield _with(node, elts=[*node.elts[:at], *node.elts[at + 1 :]])
    elif isinstance(node, ast.Dict):
        for values in _exchanged(node.values):
            yield _with(node, values=values)
        for at in range(len(node.keys)):
            yield _with(
                node, keys=node.keys[:at] + node.keys[at + 1 :], values=node.values[:at] + node.values[at + 1 :]
            )


@rule
def settings(place: Place, file: File) -> Iterator[str]:
    """A field of the configuration replaced by its default, or by another field of its kind."""
    node = place.node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        yield f"{ast.unparse(node.args[0])}.{node.args[1].value}"  # type: ignore[attr-defined]
        yield ast.unparse(node.args[2])
    if not _is_setting(node) or not isinstance(node, ast.Attribute):
        return
    default = file.defaults.get(node.attr)
    if node.attr in file.defaults and isinstance(default, bool | int | float | str | None):
        yield repr(default)
    for other in sorted({each.attr for each in ast.walk(file.tree) if _is_setting(each)}):  # type: ignore[attr-defined]
        same = type(file.defaults.get(other, 0)) is type(file.defaults.get(node.attr, 0))
        if other != node.attr and same:
            yield _with(node, attr=other)


def _is_setting(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute):
        return False
    return ast.unparse(node.value) in ("config", "self.config")


@rule
def statements(place: Place, _file: File) -> Iterator[str]:
    """A statement of a function left out; a loop's body, too."""
    if (
        isinstance(place.node, ast.stmt)
        and place.within(ast.FunctionDef)
        and not isinstance(place.node, ast.FunctionDef)
    ):
        yield "pass"


@rule
def names(place: Place, _file: File) -> Iterator[str]:
    """A variable or parameter of a `forward` in another's place, an attribute of `self` in another's."""
    node, function = place.node, place.within(ast.FunctionDef)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and function is not None:
        if place.within(ast.ClassDef) is None or function.name == "__init__":
            return
        used = {
            each.id for each in ast.walk(function) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        }
        used |= {each.arg for each in function.args.args} - {"self"}
        if node.id in used:
            yield from sorted(used - {node.id, "_"})
    elif _is_self(node) and isinstance(node, ast.Attribute):
        owner = place.within(ast.ClassDef)
        assigned = {
            each.attr  # type: ignore[attr-defined]
            for each in ast.walk(owner)
            if _is_self(each) and isinstance(each.ctx, ast.Store)  # type: ignore[attr-defined]
        }
        if node.attr in assigned:
            for other in sorted(assigned - {node.attr}):
                yield f"self.{other}"


@rule
def subscripts(place: Place, file: File) -> Iterator[str]:
    """One name in brackets in the place of another."""
    if isinstance(place.parent, ast.Subscript) and isinstance(place.node, ast.Constant):
        inside = [each.slice for each in ast.walk(file.tree) if isinstance(each, ast.Subscript)]
        others = {each.value for each in inside if isinstance(each, ast.Constant)} - {place.node.value}
        yield from (repr(other) for other in others)


@rule
def claims(place: Place, _file: File) -> Iterator[str]:
    """A base class left out: something that the model says it can do."""
    if isinstance(place.parent, ast.ClassDef) and place.node in place.parent.bases[1:]:
        yield 'type("Nothing", (), {})'
