"""Running a contract against a mutated model file, within this process."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bestiary.api.registry import ModelRegistry
from bestiary.testing.failures import ContractFailure

from .table import MUTATIONS, Mutation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutations.md"
HEAD = """\
# Mistakes that were tried

The conformance kit is worth what it notices. Each row is a small mistake made in a model file, one at a time, and the
first check of `bestiary.testing` that failed for it; those that only ranks show were tried on ranks first. None passes.
The tests repeat all of them on every change, each against the check of its row, and by hand (`-m full`) that no earlier
check notices it; `python -m tests.mutations.run` writes this page.

These were thought of. Beside them, `python -m tests.mutations.automatic` makes every small mistake of a few kinds in
the syntax trees of the eight model files, nearly eight thousand: constants, operators, conditions, arguments, fields of
the configuration, variables and statements, one changed at a time. `ACCEPTED` there says of the few that nothing
notices why they are no mistakes.

| model file | mistake | noticed by |
|---|---|---|
"""
LEFT_OUT = {"found", "clean_import", "readme", "shows_mistakes", "bf16"}
"""Checks of something else than the model file's mathematics, and the coarse one."""


@cache
def contract(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)()


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """The module with the mistake in it stands in the place of the right one."""
    source = inspect.getsource(import_module(mutation.module))
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.old!r} stands {source.count(mutation.old)} times in {mutation.module}")
    with replaced(mutation.module, source.replace(mutation.old, mutation.new)):
        yield


@contextmanager
def replaced(module: str, source: str) -> Iterator[None]:
    """A module made of `source` stands in the place of the one of this name."""
    right = import_module(module)
    wrong = ModuleType(module)
    wrong.__dict__.update(
        {name: getattr(right, name) for name in ("__file__", "__spec__", "__loader__", "__package__")}
    )
    exec(compile(source, right.__file__ or "", "exec"), wrong.__dict__)  # noqa: S102
    sys.modules[module] = wrong
    ModelRegistry._loaded.clear()
    try:
        yield
    finally:
        sys.modules[module] = right
        ModelRegistry._loaded.clear()


def calls(subject: Any, left_out: Collection[str] = LEFT_OUT) -> Iterator[tuple[str, dict[str, str]]]:
    """Every check with every value of its parameter, cheap ones first as the contract orders them."""
    for name in subject.checks():
        if name in left_out:
            continue
        wanted = list(inspect.signature(getattr(subject, f"test_{name}")).parameters)
        values = subject.parameters()
        if not wanted:
            yield name, {}
        for parameter in wanted:
            yield from ((name, {parameter: value}) for value in values[parameter])


def label(name: str, arguments: dict[str, str]) -> str:
    """How a call of a check is named, on the page too: ``logits``, ``logits (GELU)``."""
    return name + "".join(f" ({value})" for value in arguments.values() if value != "base")


def noticed_by(mutation: Mutation, only: Collection[str] = ()) -> str | None:
    """The label of the first call (of `only`, where given) that fails; None where the mistake passes all.

    The contract's references and checkpoints are kept for the next mistake; `free` drops them.
    """
    subject = contract(mutation.contract)
    try:
        with mutated(mutation):
            for name, arguments in sorted(calls(subject), key=lambda call: call[0] != mutation.first):
                if only and label(name, arguments) not in only:
                    continue
                try:
                    getattr(subject, f"test_{name}")(**arguments)
                except pytest.skip.Exception:
                    continue
                except ContractFailure:
                    return label(name, arguments)
    finally:
        subject.bench.drop_all()
    return None


def free() -> None:
    """Drop the references and checkpoints of all contracts."""
    for mutation in MUTATIONS:
        type(contract(mutation.contract)).teardown_class()


def row(mutation: Mutation, check: str | None) -> str:
    file = mutation.module.rpartition(".")[2]
    return f"| `{file}.py` | {mutation.what} | `{check or 'nothing'}` |\n"


def noted(mutation: Mutation) -> str | None:
    """What the page says noticed it; None where the page has no row of it."""
    before, _, after = row(mutation, "CHECK").partition("CHECK")
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [line for line in lines if line.startswith(before) and line.endswith(after)]
    return found[0].removeprefix(before).removesuffix(after) if len(found) == 1 else None


if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(row(each, noticed_by(each)) for each in MUTATIONS), encoding="utf-8")
