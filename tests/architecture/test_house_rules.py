"""Rules that hold in every file: nothing that could run data as code, no `assert` as a check, nothing left over."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("core/src/**/*.py")) + sorted(ROOT.glob("plugins/*/src/**/*.py"))

RUNS_DATA = {"pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "torch.hub.load", "os.system"}
METHODS = {"recv_pyobj", "send_pyobj"}
OPTIONS = {"allow_pickle", "trust_remote_code", "shell"}  # never switched on

LEFT_OVER = [
    (re.compile(r"(?<![\w.~$}*])/(?:home|root|tmp|work|opt|mnt|Users)/[\w.-]"), "a path of one machine"),
    (re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"), "a note to self"),
    (re.compile(r"\b[Ii]ssue #?\d"), "a reference that only its author can follow"),
    (re.compile(r"^(?:<{7}|>{7}|={7})(?: |$)", re.MULTILINE), "a merge conflict"),
]


def code_offences(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason. Read from the syntax tree: prose and names such as `model.eval` do not count."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assert():
                yield node.lineno, "assert: `python -O` drops it; raise an error of bestiary.api.errors"
            case ast.Import(names=names) if found := {name.name.partition(".")[0] for name in names} & RUNS_DATA:
                yield node.lineno, f"imports {', '.join(found)}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in RUNS_DATA:
                yield node.lineno, f"imports from {module}"
            case ast.Call(func=func, keywords=keywords):
                name = ast.unparse(func)
                if name.removeprefix("builtins.") in CALLS or name.rpartition(".")[2] in METHODS:
                    yield node.lineno, f"calls {name}"
                for keyword in keywords:
                    if keyword.arg in OPTIONS and ast.unparse(keyword.value) != "False":
                        yield node.lineno, f"{name}({keyword.arg}=…)"


def text_offences(text: str) -> Iterator[tuple[int, str]]:
    for pattern, reason in LEFT_OVER:
        for found in pattern.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, f"{reason}: {found[0].strip()}"


def repository_files() -> list[Path]:
    """Every text file that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    names = sorted(set(listing.stdout.decode().split("\0")) - {""})
    return [path for name in names if (path := ROOT / name).is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_source_runs_no_data_and_checks_with_errors() -> None:
    assert len(SOURCES) > 20
    found = [(file, offence) for file in SOURCES for offence in code_offences(file.read_text("utf-8"))]
    assert [f"{file.relative_to(ROOT)}:{line}: {reason}" for file, (line, reason) in found] == []


def test_nothing_is_left_over_in_the_repository() -> None:
    found = [(file, offence) for file in repository_files() for offence in text_offences(file.read_text("utf-8"))]
    assert [f"{file.relative_to(ROOT)}:{line}: {reason}" for file, (line, reason) in found] == []


@pytest.mark.parametrize(
    "line",
    [
        "assert x",
        "import pickle",
        "import json, dill",
        "from marshal import loads",
        "eval(x)",
        "builtins.exec(x)",
        "torch.load(x, weights_only=True)",
        "yaml.load(x)",
        "socket.recv_pyobj()",
        "np.load(x, allow_pickle=True)",
        "AutoConfig.from_pretrained(x, trust_remote_code=flag)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_an_offence_in_code_is_found(line: str) -> None:
    assert [number for number, _ in code_offences(f"x = 1\nif x:\n    {line}")] == [3]


def test_harmless_code_passes() -> None:
    assert (
        list(code_offences('"""pickle, eval(x)."""\nmodel.eval()\njson.load(f)\nnp.load(f, allow_pickle=False)')) == []
    )


@pytest.mark.parametrize(
    "text", ["/" + "home/someone/x", "see /" + "tmp/x", "TO" + "DO: later", "iss" + "ue 12", "<" * 7]
)
def test_a_left_over_is_found(text: str) -> None:
    assert [number for number, _ in text_offences(f"\n{text}\n")] == [2]


def test_harmless_text_passes() -> None:
    assert list(text_offences("~/tmp/x $HOME/work/x https://host/opt/x /usr/bin/env /path/to/python an issue")) == []
