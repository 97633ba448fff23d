"""Writes docs/reference.md, the authoring vocabulary, out of the docstrings: `scripts/reference`."""

from __future__ import annotations

import enum
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
HEAD = """\
# Reference

The names that the authoring modules export, from their docstrings: `scripts/reference` writes this page. Names and
signatures follow vLLM's. [What may be relied on](versions.md) says how long they last.
"""
MODULES = {
    "bestiary.api": "Contracts: protocols, configuration, declarations. Imports no torch. Errors are in "
    "`bestiary.api.errors`, hooks in `bestiary.api.hooks`.",
    "bestiary.nn": "All that a modelling file needs beside torch.",
    "bestiary.testing": "The conformance kit: what a contract may state. Needs `pip install 'bestiary[testing]'`.",
}
CONSTANTS = {
    "DEFAULT_VOCAB_PADDING_SIZE": "Rows to a multiple of which a rank's share of a vocabulary is padded.",
    "ModelRegistry": "What this process can serve: `register_model`, `architectures`, `resolve`, `inspect`, `list`.",
}
"""What has no docstring of its own, being a value."""

_WIDTH = 110
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")


def page() -> str:
    return "\n".join([HEAD, *(section for name in MODULES for section in _module(name))])


def _module(name: str) -> Iterator[str]:
    module = import_module(name)
    names = sorted(module.__all__, key=str.casefold)
    yield f"## `{name}`\n\n{MODULES[name]}\n\n| name | |\n|---|---|"
    yield "\n".join(f"| [`{each}`](#{each.lower()}) | {_summary(module, each)} |" for each in names) + "\n"
    for each in names:
        yield "\n".join(_entry(each, getattr(module, each)))


def _summary(module: object, name: str) -> str:
    text = _doc(getattr(module, name), name).split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _doc(value: object, name: str) -> str:
    if name in CONSTANTS:
        return CONSTANTS[name]
    text = inspect.getdoc(value) if isinstance(value, type | FunctionType) or callable(value) else None
    if not text:
        raise SystemExit(f"{name} has no docstring")
    return text.replace("``", "`")


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}`\n"
    if isinstance(value, type) and issubclass(value, enum.Enum):
        yield _markdown(_doc(value, name))
        yield ", ".join(f"`{member.name}`" for member in value) + "\n"
        return
    if name in CONSTANTS:
        shown = f" It is `{value!r}`." if isinstance(value, int | str) else ""
        yield f"{CONSTANTS[name]}{shown}\n"
        return
    protocol = getattr(value, "_is_protocol", False)
    if not protocol:
        yield f"```python\n{_signature(name, value)}\n```\n"
    yield _markdown(_doc(value, name))
    if isinstance(value, type):
        own = _own_doc(value.__dict__.get("__init__"))
        if own and not protocol:
            yield _markdown(own)
        yield from _members(value)


def _signature(name: str, value: Any) -> str:
    """As one would write it: a line, or a parameter a line where that is too long. `self` and `cls` are left out."""
    signature = inspect.signature(value)
    parts, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        parts.append(_parameter(parameter))
    gives = "" if isinstance(value, type) else f" -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parts)}){gives}"
    if len(line) <= _WIDTH:
        return line
    listed = textwrap.indent(",\n".join(parts), "    ")
    return f"{name}(\n{listed},\n){gives}"


def _parameter(parameter: inspect.Parameter) -> str:
    mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = mark + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        plain = parameter.default is None or isinstance(parameter.default, int | float | str | tuple)
        default = parameter.default
        shown = str(default) if isinstance(default, enum.Enum) else repr(default) if plain else "…"
        text += f" = {shown}" if ": " in text else f"={shown}"
    return text


def _annotation(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"\b(?:torch|bestiary\.\w+(?:\.\w+)*|nn)\.(?=[A-Z])", "", text)


def _members(cls: type) -> Iterator[str]:
    """Public methods and properties that the class itself defines, and a protocol's attributes: a line each."""
    rows = []
    if getattr(cls, "_is_protocol", False):
        rows = [f"* `{name}: {_annotation(kind)}`" for name, kind in inspect.get_annotations(cls).items()]
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        text = _own_doc(function) if isinstance(function, FunctionType) else ""
        if not name.startswith("_") and text:
            shown = name if isinstance(member, property) else " ".join(_signature(name, function).split())
            shown = shown.replace("( ", "(").replace(", )", ")")
            rows.append(f"* `{shown}` – {' '.join(text.split(chr(10) * 2)[0].split())}")
    if rows:
        yield "\n".join(rows) + "\n"


def _own_doc(function: object) -> str:
    own = getattr(function, "__doc__", None)
    return inspect.cleandoc(own).replace("``", "`") if isinstance(own, str) and own else ""


def _markdown(text: str) -> str:
    """A docstring as Markdown: sections become lists, ``name: meaning`` an item."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if found := _SECTION.match(line):
            inside = True
            lines += ["" if lines and lines[-1] else None, f"**{found[1]}**", ""]  # type: ignore[list-item]
        elif inside and line and not line.startswith(" "):
            inside = False
            lines += ["", line]
        elif inside:
            lines.append(_item(line))
        else:
            lines.append(line)
    return "\n".join(line for line in lines if line is not None).rstrip() + "\n"


def _item(line: str) -> str:
    stripped = line.strip()
    if not stripped or line.startswith("     "):
        return f"  {stripped}" if stripped else ""
    head, colon, rest = stripped.partition(": ")
    return f"* `{head}`: {rest}" if colon and re.fullmatch(r"[\w ,*.]+", head) else f"* {stripped}"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
