"""Runs the fenced blocks of documents in order, as their reader would, in the current directory. A program of its own.

    python run_document.py DOCUMENT.md …

What a fence says after its language: ``file=PATH`` writes the block there; ``raises`` expects an error of ours;
``not-run`` is left alone, except that the options of its `bestiary` commands must exist. Python blocks share one
session a document. A ``text`` block right after is what the block printed, or the error's text; in a ``console`` block
lines after ``$ command`` are what the command printed. "…" stands for any text.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SITE = "installed"


class Block(NamedTuple):
    line: int
    language: str
    words: list[str]
    text: str

    @property
    def file(self) -> str | None:
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)


class WrongDocument(Exception):
    """The document says what is not so."""


def blocks(document: str) -> list[Block]:
    return [
        Block(document.count("\n", 0, found.start()) + 1, found[1] or "", found[2].split(), found[3])
        for found in FENCE.finditer(document)
    ]


def matches(shown: str, got: str) -> bool:
    """Whether `got` is what is shown; a run of spaces is one, and "…" is any text."""
    shown, got = ("\n".join(re.sub(" +", " ", line).rstrip() for line in each.splitlines()) for each in (shown, got))
    pattern = ".*?".join(re.escape(part) for part in shown.strip("\n").split("…"))
    return re.fullmatch(pattern, got.strip("\n"), re.DOTALL) is not None


def require_output(block: Block, shown: str, got: str) -> None:
    if not matches(shown, got):
        raise WrongDocument(f"line {block.line} shows\n{shown}\nbut it is\n{got}")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, shown output) of a console block; other lines before the first command are not allowed."""
    head, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
    if head.strip():
        raise WrongDocument(f"a console block begins with output: {head}")
    for each in rest:
        command, _, shown = each.partition("\n")
        yield command, shown


def run_command(command: str) -> str:
    """What the command prints. `pip install` goes to a folder of its own, offline; `bestiary` runs in this process."""
    name, *arguments = shlex.split(command, comments=True)
    if name == "pip":
        return pip(*arguments)
    if name == "python":
        (file,) = arguments
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(file, run_name="__main__")
        return printed.getvalue()
    if name == "bestiary":
        return bestiary(arguments)
    raise WrongDocument(f"no such command in this shell: {command}")


def pip(verb: str, *what: str) -> str:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--upgrade", "--target", SITE]
    subprocess.run([sys.executable, "-m", "pip", verb, *options, *what], check=True, timeout=60)
    from bestiary import ModelRegistry

    importlib.invalidate_caches()
    ModelRegistry.refresh()  # as the reader's next Python would
    return ""


def bestiary(arguments: list[str]) -> str:
    main: Any = importlib.import_module("bestiary.serve.cli.main")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main.run(arguments)
    if code:
        raise WrongDocument(f"bestiary {shlex.join(arguments)} ends with exit code {code}")
    return printed.getvalue()


def check_options(block: Block) -> None:
    """Parse the `bestiary` commands of a block that is not run."""
    main: Any = importlib.import_module("bestiary.serve.cli.main")
    for line in block.text.splitlines():
        name, *arguments = shlex.split(line.removeprefix("$ "), comments=True) or [""]
        if name == "bestiary" and arguments:
            command = main.cli.get_command(None, arguments[0])
            if command is None:
                raise WrongDocument(f"line {block.line}: there is no `bestiary {arguments[0]}`")
            command.make_context(arguments[0], arguments[1:])


def run_python(block: Block, session: dict[str, Any]) -> str:
    """Run the block in the session; returns what it printed, or the text of the error that it says it raises."""
    from bestiary.api.errors import BestiaryError
    from bestiary.testing.failures import ContractFailure

    path = Path(f"block_{block.line}.py")
    path.write_text(block.text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            session |= runpy.run_path(str(path), init_globals=session, run_name="__main__")
        except (BestiaryError, ContractFailure) as error:
            if "raises" in block.words:
                return str(error)
            raise
    if "raises" in block.words:
        raise WrongDocument(f"line {block.line} says that it raises, and does not")
    return printed.getvalue()


def run(document: Path) -> None:
    session: dict[str, Any] = {}
    printed: tuple[Block, str] | None = None
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language == "text" and printed is not None:
            require_output(printed[0], block.text, printed[1])
        printed = None
        if "not-run" in block.words:
            check_options(block)
        elif block.file is not None:
            path = Path(block.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed = block, run_python(block, session)
        elif block.language == "console":
            for command, shown in commands(block.text):
                require_output(block, shown, run_command(command))


def main() -> None:
    Path(SITE).mkdir()
    sys.path[:0] = ["", SITE]
    for name in sys.argv[1:]:
        try:
            run(Path(name))
        except WrongDocument as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
