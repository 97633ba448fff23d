"""Commands that installed packages add."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestiary.api.registry import ModelRegistry
from bestiary.serve.cli.main import run
from bestiary.testing.fake_site import Site

SOURCE = """\
import click

@click.command()
@click.argument("what")
def command(what):
    "Greet WHAT."
    print("hello", what)

number = 3
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.root))
    yield made
    sys.modules.pop("greeter", None)
    ModelRegistry.refresh()


def add(site: Site, name: str, value: str = "greeter:command", api: str = "1.0") -> None:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Greets.\n"
    module = name if name == "greeter" else f"{name}_module"
    site.add(
        name, api=api, source=SOURCE, module=module, metadata=metadata, groups={"bestiary_commands": {"greet": value}}
    )
    ModelRegistry.refresh()


def test_a_command_is_listed_without_being_imported_and_runs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["greet", "you"]) == 1
    assert "No such command 'greet'" in capsys.readouterr().err
    add(site, "greeter")
    assert run(["--help"]) == 0
    assert "Greets. (package greeter)" in capsys.readouterr().out
    assert "greeter" not in sys.modules
    assert run(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert run(["gret"]) == 1
    assert "did you mean greet?" in capsys.readouterr().err


def test_one_that_cannot_be_had_is_an_error_of_its_own(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, "greeter", "greeter:number")
    assert run(["greet", "you"]) == 3
    assert "greeter:number is no click command (from dist greeter 1.0)" in capsys.readouterr().err
    add(site, "second")
    assert run(["greet", "you"]) == 1
    assert "greeter 1.0 and second 1.0 both add a command greet" in capsys.readouterr().err


def test_one_for_another_core_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, "greeter", api="9.0")
    assert run(["greet", "you"]) == 3
    assert "written for core API 9.0" in capsys.readouterr().err
