"""Which architectures files hold: what they register, and which of their classes are models'."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from bestiary.api.importing import split

from .errors import not_portable
from .reading import Source

ENDINGS = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "LMHeadModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForRewardModel",
    "ForEmbedding",
)


def architectures(sources: dict[str, Source], wanted: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Architecture → (module, class): those `wanted` (``Name`` or ``Name=Class``); else those that the files register
    (``register_model("Name", …)``); else the classes that are a whole model.

    Raises:
        BadTarget: NOT_PORTABLE, there is none, or a wanted one has no class.
    """
    defined = {each.name: module for module, source in sources.items() for each in source.classes}
    found = {}
    for pair in wanted:
        name, _, cls = pair.partition("=")
        cls = cls or name
        if cls not in defined:
            models = ", ".join(name for _, name in _models(sources)) or "none"
            raise not_portable(
                f"there is no class {cls}", field="--architecture", value=pair, details=[f"models: {models}"]
            )
        found[name] = (defined[cls], cls)
    found = found or dict(_registered(sources, defined))
    found = found or {name: (module, name) for module, name in _models(sources)}
    if not found:
        raise not_portable(
            "no class in it is a model's", limit=f"a torch module whose name ends in {', '.join(ENDINGS)}",
            details=[f"classes: {', '.join(defined) or 'none'}"], fix="--architecture NAME=CLASS",
        )  # fmt: skip
    return found


def registrars(sources: dict[str, Source]) -> list[tuple[str, str]]:
    """(module, function) of every function at the top of a file that registers models, for it may register what goes
    with them as well."""
    return [
        (module, node.name)
        for module, source in sources.items()
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef) and not node.args.args and any(_registrations(node))
    ]


def _registrations(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of a `register_model`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register_model":
            yield node


def _registered(sources: dict[str, Source], defined: dict[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for source in sources.values():
        for call in _registrations(source.tree):
            names = [*call.args, *(word.value for word in call.keywords)]
            if len(names) >= 2 and isinstance(names[0], ast.Constant):
                place = _place(names[1], defined)
                if place is not None:
                    yield str(names[0].value), place


def _place(model: ast.expr, defined: dict[str, str]) -> tuple[str, str] | None:
    if isinstance(model, ast.Constant) and isinstance(model.value, str):
        reference = split(model.value)
        return reference if reference is not None and reference[1] in defined else None
    if isinstance(model, ast.Name) and model.id in defined:
        return defined[model.id], model.id
    return None


def _models(sources: dict[str, Source]) -> Iterator[tuple[str, str]]:
    """(module, class) of every class that is called as a whole model is."""
    for module, source in sources.items():
        for each in source.classes:
            if each.name.endswith(ENDINGS) and each.bases:
                yield module, each.name
