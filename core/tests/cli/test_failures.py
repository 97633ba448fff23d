"""Every failure: its exit code, its text, its JSON, and no traceback unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from bestiary.api.errors import BestiaryError
from bestiary.serve.cli import models as models_module
from bestiary.testing.fake_site import Site

from .conftest import Run

KEYS = set(BestiaryError("x").as_dict())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["genrate"], 1, ["did you mean generate?"]),
        (["models", "--jsn"], 1, ["--json"]),
        (["generate"], 1, ["MODEL", "generate --help"]),
        (["generate", "x", "y", "--prompt", "z"], 1, ["twice"]),
        (["generate", "x", "y", "--system", "s"], 1, ["--chat"]),
        (["generate", "x", "y", "--dtype", "float8"], 1, ["bfloat16"]),
        (["generate", "x", "y", "--kv-cache-memory-bytes", "lots"], 1, ["512M"]),
        (["generate", "x", "y", "--hf-overrides", "[1]"], 1, ["JSON object"]),
        (["generate", "x", "y", "--op", "linear"], 1, ["NAME=VALUE"]),
        (["generate", "x", "y", "--temperature", "-1"], 1, ["temperature"]),
        (["completion", "tcsh"], 1, ["bash"]),
        (["generate", "smolm2", "hello"], 2, ["did you mean smollm2?", "bestiary models"]),
        (["inspect", "./nowhere"], 2, ["nowhere"]),
        (["inspect", "owner/name"], 2, ["HF_HUB_OFFLINE"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, words: list[str], bestiary: Run) -> None:
    result = bestiary(*arguments)
    assert result.code == code
    assert all(word in result.err for word in words), result.err
    assert result.out == ""
    assert "Traceback" not in result.err and len(result.err.splitlines()) < 25


def test_a_missing_prompt_on_a_terminal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.serve.cli.generate import _prompt

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(click.UsageError, match="Missing PROMPT"):
        _prompt(None, None)


def test_an_unknown_architecture_is_exit_2(bestiary: Run, model_of: Callable[[str], Path]) -> None:
    result = bestiary("inspect", model_of("LamaForCausalLM"), "--json")
    assert result.code == 2
    assert set(result.data) == {"error"}
    assert set(result.data["error"]) == KEYS
    assert result.data["error"]["code"] == "UNKNOWN_ARCHITECTURE"
    assert any("LlamaForCausalLM" in line for line in result.data["error"]["details"])
    assert "UNKNOWN_ARCHITECTURE" in result.err


def test_a_broken_plugin_is_exit_3_and_the_traceback_is_there_for_the_asking(
    bestiary: Run, site: Site, model_of: Callable[[str], Path]
) -> None:
    site.add("broken-one", models={"BrokenOne": "broken_one:Model"}, source="raise RuntimeError('no \x1b[31mluck')")
    directory = model_of("BrokenOne")
    plain = bestiary("inspect", directory)
    assert plain.code == 3
    assert "broken-one" in plain.err and "luck" in plain.err
    assert "Traceback" not in plain.err and "\x1b" not in plain.err
    debug = bestiary("--debug", "inspect", directory)
    assert debug.code == 3
    assert "Traceback" in debug.err and "broken_one.py" in debug.err
    assert bestiary("inspect", directory, "--json", "--debug").data["error"]["code"] == "BROKEN_PLUGIN"


def test_a_defect_is_one_line_and_exit_70(bestiary: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(models_module, "short_names", broken)
    plain = bestiary("models")
    assert plain.code == 70
    assert plain.err == "internal error: ZeroDivisionError: first line; --debug shows the traceback\n"
    assert "Traceback" in bestiary("models", "--debug").err
    document = bestiary("models", "--json").data["error"]
    assert set(document) == KEYS and document["code"] == "INTERNAL"


def test_ctrl_c_is_exit_130_without_a_traceback(bestiary: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_module, "short_names", interrupted)
    result = bestiary("models")
    assert (result.code, result.out, result.err.strip()) == (130, "", "")


def test_a_prompt_that_looks_like_an_option_is_a_prompt(bestiary: Run) -> None:
    """What stands behind -- is no option of ours: the error is text only."""
    result = bestiary("generate", "smolm2", "--", "--json")
    assert (result.code, result.out) == (2, "")
