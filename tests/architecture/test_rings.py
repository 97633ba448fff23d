"""Imports point inwards: plugins → nn, api; serve → engine → nn → api → standard library and three small packages.

Read from the source, so that an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
RINGS = ["api", "nn", "engine", "serve", "bench", "testing"]  # each may import itself and those before it
API_NEEDS = {"bestiary", "pluggy", "importlib_metadata", "packaging", *sys.stdlib_module_names}
_BOOKKEEPING = ("sequence", "state_rows", "kv_cache", "plan", "roster", "choosing", "recording", "ahead", "scheduler")
TORCH_FREE = {f"engine/{name}.py" for name in _BOOKKEEPING}
MAY_USE_TESTING = {"serve/cli/certify.py", "serve/cli/new.py"}
PLUGIN_NEEDS = {"api", "nn"}
CONTRACT = "contract.py"  # of a plugin: its conformance tests, imported by pytest alone


class Import(NamedTuple):
    target: str  # absolute, down to the imported name: "bestiary.api.errors.UsageError"
    line: int
    when: Literal["load", "call", "typing"]


def imports(file: Path, source_root: Path) -> Iterator[Import]:
    package = file.relative_to(source_root).parts[:-1]

    def visit(node: ast.AST, when: Literal["load", "call", "typing"]) -> Iterator[Import]:
        match node:
            case ast.Import():
                yield from (Import(alias.name, node.lineno, when) for alias in node.names)
            case ast.ImportFrom():
                base = [*package[: len(package) + 1 - node.level]] if node.level else []
                base += node.module.split(".") if node.module else []
                yield from (Import(".".join([*base, alias.name]), node.lineno, when) for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                yield Import(name, node.lineno, when)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if when == "load":
                when = "call"
            case ast.If() if ast.unparse(node.test).endswith("TYPE_CHECKING"):
                for child in node.body:
                    yield from visit(child, "typing")
                node = ast.Module(node.orelse, [])
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    return visit(ast.parse(file.read_text("utf-8")), "load")


def core_violation(file: str, one: Import, plugins: set[str]) -> str | None:
    """Why the file of core (its path below `bestiary/`) must not import this; None when it may."""
    ring = file.split("/")[0]
    top, _, rest = one.target.partition(".")
    other = rest.split(".")[0]
    if top in plugins:
        return "core imports a plugin"
    if ring in RINGS and top == "bestiary" and other in RINGS:
        allowed = RINGS[: RINGS.index(ring) + 1] + (["testing"] if file in MAY_USE_TESTING else [])
        return None if other in allowed else f"{ring} imports {other}"
    if ring in RINGS[:3] and top == "bestiary" and other != "__version__":
        return f"{ring} imports the public face"
    if ring not in RINGS and one.when == "load" and top == "bestiary" and other in RINGS[1:]:
        return f"importing bestiary would load {other}"
    if ring == "api" and one.when != "typing" and top not in API_NEEDS:
        return f"api imports {top}"
    if file in TORCH_FREE and one.when != "typing" and top == "torch":
        return "this part of the engine works without torch"
    return None


def violations(root: Path) -> Iterator[str]:
    owners = {path.name: path for path in root.glob("plugins/*/src/*/")}
    core = root / "core/src"
    for file in sorted(core.rglob("*.py")):
        below = file.relative_to(core / "bestiary").as_posix()
        for one in imports(file, core):
            if reason := core_violation(below, one, set(owners)):
                yield f"{file.relative_to(root)}:{one.line}: {reason} ({one.target})"
    for name, package in owners.items():
        for file in sorted(package.rglob("*.py")):
            for one in imports(file, package.parent):
                top, _, rest = one.target.partition(".")
                foreign = top in owners and top != name
                allowed = PLUGIN_NEEDS | ({"testing"} if file.name == CONTRACT else set())
                if foreign or (top == "bestiary" and rest.split(".")[0] not in allowed):
                    yield f"{file.relative_to(root)}:{one.line}: a plugin imports {one.target}"


def plugin_names(root: Path) -> Iterator[str]:
    """What core must not say in code: plugins' distributions, their packages, and architectures."""
    for file in root.glob("plugins/*/pyproject.toml"):
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        yield project["name"]
        yield from project.get("entry-points", {}).get("vllm_models", {})
        yield from (path.name for path in file.parent.glob("src/*/"))


def names_said(root: Path) -> Iterator[str]:
    names = set(plugin_names(root))
    for file in sorted(root.glob("core/src/**/*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if id(node) not in prose:
                    yield from (f"{file.relative_to(root)}:{node.lineno}: {name}" for name in names if name in text)


def test_imports_point_inwards() -> None:
    assert list(violations(ROOT)) == []


def test_core_names_no_plugin_outside_its_data_files() -> None:
    assert list(names_said(ROOT)) == []


CORE = "core/src/bestiary/"
PLUGIN = "plugins/llama_plugin/src/llama_plugin/llama.py"


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        (CORE + "api/x.py", "from bestiary.nn import linear", "api imports nn"),
        (CORE + "api/x.py", "import torch", "api imports torch"),
        (CORE + "api/x.py", "def f():\n    import numpy", "api imports numpy"),
        (CORE + "api/x.py", "if TYPE_CHECKING:\n    import pluggy\nelse:\n    import torch", "api imports torch"),
        (CORE + "nn/deep/er/x.py", "from ....engine.runner import ModelRunner", "nn imports engine"),
        (CORE + "nn/x.py", "if TYPE_CHECKING:\n    from bestiary import engine", "nn imports engine"),
        (CORE + "nn/__init__.py", "from ..serve import llm", "nn imports serve"),
        (CORE + "engine/x.py", "import bestiary.serve.llm as llm", "engine imports serve"),
        (CORE + "engine/x.py", "from bestiary import LLM", "engine imports the public face"),
        (CORE + "engine/x.py", "from bestiary.testing import tiny", "engine imports testing"),
        (CORE + "engine/scheduler.py", "def f():\n    from torch import nn", "works without torch"),
        (CORE + "serve/x.py", "import_module('llama_plugin.llama')", "core imports a plugin"),
        (CORE + "__init__.py", "from .serve.llm import LLM", "importing bestiary would load serve"),
        (PLUGIN, "def f():\n    import bestiary.engine.runner", "a plugin imports bestiary.engine"),
        (PLUGIN, "from bestiary import LLM", "a plugin imports bestiary.LLM"),
        (PLUGIN, "from bestiary.testing import ModelContract", "a plugin imports bestiary.testing.ModelContract"),
        (PLUGIN, "from qwen_plugin import block", "a plugin imports qwen_plugin.block"),
    ],
)
def test_the_rules_find_a_violation(tmp_path: Path, path: str, source: str, reason: str) -> None:
    (tmp_path / PLUGIN).parent.mkdir(parents=True)
    (tmp_path / "plugins/qwen_plugin/src/qwen_plugin").mkdir(parents=True)
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    (found,) = violations(tmp_path)
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (CORE + "api/x.py", "import json, pluggy\nif TYPE_CHECKING:\n    import torch"),
        (CORE + "nn/deep/x.py", "import torch\nfrom ..norm import RMSNorm\nfrom bestiary.api import errors"),
        (CORE + "engine/plan.py", "if TYPE_CHECKING:\n    import torch"),
        (CORE + "serve/cli/certify.py", "from bestiary.testing import kit"),
        (CORE + "__init__.py", "def __getattr__(name):\n    from .serve.llm import LLM"),
        ("plugins/llama_plugin/src/llama_plugin/contract.py", "from bestiary.testing import ModelContract"),
        (
            PLUGIN,
            "import torch\nfrom bestiary.nn import RMSNorm\nfrom bestiary.api import VllmConfig\nfrom . import gguf",
        ),
    ],
)
def test_the_rules_let_the_rest_pass(tmp_path: Path, path: str, source: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    assert list(violations(tmp_path)) == []


def test_a_plugin_named_in_code_is_found_and_in_prose_is_not(tmp_path: Path) -> None:
    project = tmp_path / "plugins/llama_plugin/pyproject.toml"
    project.parent.mkdir(parents=True)
    project.write_text('[project]\nname = "bestiary-llama"\n[project.entry-points.vllm_models]\nLlamaForX = "m:C"\n')
    file = tmp_path / CORE / "api/x.py"
    file.parent.mkdir(parents=True)
    file.write_text('"""Such as LlamaForX."""\nfix = "pip install bestiary-llama"\nif name == "LlamaForX": ...\n')
    assert [found.split(": ")[1] for found in names_said(tmp_path)] == ["bestiary-llama", "LlamaForX"]
