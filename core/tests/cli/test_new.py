"""`bestiary new`: what it makes is certified as it is, and a mistake in it is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bestiary.serve.cli.main import run
from bestiary.serve.cli.new import FILES
from bestiary.testing.fake_site import Site

from .conftest import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, to be copied."""
    folder = tmp_path_factory.mktemp("new") / "project"
    assert run(["new", "my-model", "--architecture", "Odd", "--folder", str(folder)]) == 0
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, called `project`, in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, "project"))


def test_a_new_project_is_in_order_and_a_mistake_in_it_is_found(
    bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(That it is certified, tests/packaging finds on an author's way, and the next test by hand.)"""
    monkeypatch.chdir(tmp_path)
    made = bestiary("new", "My.Model")
    assert made.code == 0, made.err
    assert "cd my-model\n" in made.out and "bestiary certify ." in made.out
    project = tmp_path / "my-model"
    assert {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()} == {
        path.replace("%{package}", "my_model") for path in FILES
    }
    model = project / "src/my_model/model.py"
    assert len(model.read_text().splitlines()) <= 170
    for check in (["check"], ["format", "--check"]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "."], cwd=project, capture_output=True, check=False
        )
        assert ruff.returncode == 0, ruff.stdout

    model.write_text(model.read_text().replace("scale=head_dim**-0.5", "scale=head_dim**-0.6"))
    (project / "README.md").write_text((project / "README.md").read_text().replace("| Logits", "| Some logits"))
    broken = bestiary("certify", "my-model", "--check", "readme", "--check", "logits")
    assert broken.code == 1
    assert "# MyModelForCausalLM: logits[base] failed" in broken.out
    assert "bestiary certify my-model --write-readme" in broken.out
    assert "FAILED" in broken.out and broken.out.splitlines()[-1].startswith("failed: my-model 0.1.0: 0 of")


@pytest.mark.full
def test_a_new_project_is_certified(bestiary: Run, project: Path, tmp_path: Path) -> None:
    result = bestiary("certify", "project", "--json")
    assert result.code == 0, result.out
    found = result.data
    assert (found["verdict"], found["kind"], found["readme"]["state"]) == ("certified", "folder", "current")
    (row,) = found["architectures"]
    assert (row["architecture"], row["contract"]) == ("OddForCausalLM", "my_model.contract:TestOdd")
    assert {"logits", "greedy", "chunked", "pipeline"} <= {each["check"] for each in row["checks"]}
    assert {"lora", "pp"} <= set(row["claims"])
    kept = json.loads((tmp_path / "cache/certificates/my-model.json").read_text())
    assert kept == found


def test_a_file_that_the_wheel_lacks_and_a_readme_that_is_stale(bestiary: Run, project: Path) -> None:
    readme = project / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("| Logits", "| Some logits"))
    written = bestiary("certify", "project", "--check", "found", "--write-readme")
    assert written.code == 0 and "the table was written to README.md" in written.out
    assert readme.read_text() == text

    toml = project / "pyproject.toml"
    packages = 'packages = ["src/my_model"]'
    toml.write_text(toml.read_text().replace(packages, f'{packages}\nexclude = ["model.py"]'))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "./project"],
        check=True,
    )
    (wheel,) = Path("dist").glob("*.whl")
    assert "my_model/model.py" not in zipfile.ZipFile(wheel).namelist()
    result = bestiary("certify", wheel, "--check", "found")
    assert result.code == 1 and "No module named 'my_model.model'" in result.out


def test_a_name_that_transformers_has_gets_its_capitals_and_a_project_that_passes(
    bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' class of that name is not yet the reference: the project's configuration is still a Llama's."""
    monkeypatch.chdir(tmp_path)
    assert bestiary("new", "gpt-neox").out.startswith("gpt-neox: GPTNeoXForCausalLM, in the package gpt-neox")
    checks = ("shows_mistakes", "weights_complete", "logits")
    result = bestiary("certify", "gpt-neox", *(word for name in checks for word in ("--check", name)))
    assert result.code == 0, result.out
    assert bestiary("new", "MyOwnLM").out.startswith("myownlm: MyOwnLMForCausalLM, in the package myownlm")
    again = bestiary("new", "gpt.neox")
    assert again.code == 1 and "not empty" in again.err and "--folder" in again.err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("-x", "No such option"),
        ("1model", "module's name"),
        ("my model", "package's name"),
        ("my/model", "package's name"),
        ("größe", "package's name"),
        ("x" * 65, "package's name"),
        ("class", "module's name"),
        ("json", "there is a module json already"),
        ("pluggy", "is installed here"),
        ("Bestiary.Llama", "one of Bestiary's own"),
        ("good-plugin", "is installed here"),
        ("other-module", "there is a module other_module already"),
        ("mixtral", "bestiary-mixtral provides MixtralForCausalLM"),
        ("good", "good-plugin provides GoodForCausalLM"),
    ],
)
def test_names_that_cannot_be_are_refused_with_the_reason(
    bestiary: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    site.model("good-plugin", "GoodForCausalLM")
    (site.root / "other_module.py").touch()
    result = bestiary("new", name)
    assert result.code == 1 and told in result.err
    assert not [path for path in tmp_path.iterdir() if path.name not in ("site", "cache", "config")]


def test_architectures_and_folders_that_cannot_be(
    bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in ("a b", "import", "Größe", "X" * 65):
        result = bestiary("new", "my-model", "--architecture", wrong)
        assert result.code == 1 and "architecture's name" in result.err
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model/letter").write_text("dear")
    result = bestiary("new", "my-model")
    assert result.code == 1 and "not empty" in result.err
    assert [path.name for path in (tmp_path / "my-model").iterdir()] == ["letter"]
    (tmp_path / "file").touch()
    assert bestiary("new", "my-model", "--folder", tmp_path / "file" / "deep").code == 1


def test_tests_of_a_project_that_declares_no_contract_are_looked_through(bestiary: Run, project: Path) -> None:
    toml = project / "pyproject.toml"
    head, _, rest = toml.read_text().partition("[project.entry-points.bestiary_contracts]")
    toml.write_text(head + rest[rest.index("[tool.hatch") :])
    (project / "tests/test_other.py").write_text("import nothing_like_this")
    (project / "tests/conftest.py").write_text("import nothing_like_this")
    result = bestiary("certify", project, "--check", "found", "--json")
    assert result.code == 0, result.out
    (row,) = result.data["architectures"]
    assert row["contract"] == "test_my_model.py:TestOdd"
