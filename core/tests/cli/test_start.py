"""What starting imports: next to nothing, also with many distributions installed; and how the program ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bestiary.testing.fake_site import Site

from .conftest import Run

HEAVY = ("torch", "transformers", "tokenizers", "rich", "numpy", "huggingface_hub", "llama_plugin", "good_plugin")
CODE = """
import sys
from bestiary.serve.cli.main import run
code = run(sys.argv[2:])
print([name for name in sys.argv[1].split(",") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def started(*arguments: str, site: Path | None = None, code: str = CODE) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*([str(site)] if site else []), *(each for each in sys.path if each)])
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(HEAVY), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["models"], ["models", "--json"], ["generate", "--help"], ["chat", "--help"],
     ["inspect", "--help"], ["doctor", "--help"], ["certify", "--help"], ["new", "--help"], ["completion", "fish"],
     ["explain"], ["config"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    Site(tmp_path / "site").model("good-plugin", "GoodForCausalLM")
    done = started(*arguments, site=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


def test_models_with_500_distributions_imports_none_of_them(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    for number in range(500):
        if number % 50:
            site.add(f"bystander-{number}", api=None)
        else:
            site.model(f"plugin-{number}", f"Arch{number}ForCausalLM")
    done = started("models", "--json", site=site.root)
    found = {row["architecture"] for row in json.loads(done.stdout)["architectures"]}
    assert {f"Arch{number}ForCausalLM" for number in range(0, 500, 50)} <= found
    assert done.stderr.splitlines()[-1] == "[]"


def test_characters_the_terminal_lacks_do_not_end_the_program() -> None:
    code = 'import sys; from bestiary.serve.cli.main import run; sys.exit(run(["generate", "größe/…", "x"]))'
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "gr\\xf6\\xdfe" in done.stderr and "internal error" not in done.stderr


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bestiary", "--version"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("bestiary, version ")


@pytest.mark.parametrize(("arguments", "words"), [([], "generate"), (["bench"], "throughput")])
def test_a_command_that_is_not_named_is_explained_and_nothing_was_done(
    arguments: list[str], words: str, bestiary: Run
) -> None:
    result = bestiary(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Usage: bestiary") and words in result.err


def test_help_lists_the_exit_codes(bestiary: Run) -> None:
    text = bestiary("--help").out
    assert all(f"\n    {code} " in text for code in (0, 1, 2, 3, 4, 70, 130, 141))
