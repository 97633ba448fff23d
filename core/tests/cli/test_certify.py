"""`bestiary certify`: verdicts, exit codes, the certificate, and plugins that do not let themselves be looked at."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from bestiary.api import discovery
from bestiary.serve.cli.certify import _alike, complete_check, complete_target
from bestiary.testing.certify import target, watch
from bestiary.testing.fake_site import GOOD, Site

from .conftest import Run

CONTRACT = """
from bestiary.testing import ModelContract

class TestTiny(ModelContract):
    architecture = "TinyForCausalLM"
    config = {config}
    given_up = {given_up}
"""
KEYS = {
    "schema", "verdict", "target", "kind", "distribution", "version", "record", "api", "core", "core_api", "torch",
    "transformers", "python", "platform", "date", "seconds", "counts", "problems", "unchecked", "readme",
    "architectures",
}  # fmt: skip


def tiny(
    site: Site, source: str = GOOD.format(name="TinyForCausalLM"), *, contracts: Mapping[str, str] | None = None,
    config: object = None, given_up: Mapping[str, str] | None = None, others: Sequence[str] = (),
) -> None:  # fmt: skip
    """A plugin of one architecture, and a contract module beside it."""
    groups = {
        "vllm_models": {f"{name}ForCausalLM": "tiny_plugin:TinyForCausalLM" for name in ("Tiny", *others)},
        "bestiary_api": {"1.0": "tiny_plugin"},
        "bestiary_contracts": contracts or {},
    }
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    site.add("tiny-plugin", source=source, entry_points="".join(lines))
    (site.root / "tiny_contract.py").write_text(CONTRACT.format(config=config, given_up=dict(given_up or {})))


def test_without_a_contract_it_is_incomplete_and_says_how_to_add_one(bestiary: Run, site: Site, tmp_path: Path) -> None:
    tiny(site)
    result = bestiary("certify", "tiny_plugin", "--json", "--output", tmp_path / "certificate.json")
    found = result.data
    assert result.code == 4, result.err
    assert set(found) == KEYS and found["schema"] == 1 and found["kind"] == "distribution"
    assert found["verdict"] == "incomplete" and found["unchecked"] == {"TinyForCausalLM": "it has no contract"}
    (row,) = found["architectures"]
    assert row["architecture"] == "TinyForCausalLM" and row["contract"] is None
    assert row["claims"] == ["text_generation"]
    assert [(each["check"], each["status"]) for each in row["checks"]] == [
        ("found", "passed"), ("clean_import", "passed"), ("members", "passed"),
    ]  # fmt: skip
    assert set(row["checks"][0]) == {"check", "variant", "status", "seconds", "message"}
    assert json.loads((tmp_path / "certificate.json").read_text()) == found
    listed = {each["architecture"]: each for each in bestiary("models", "--json").data["architectures"]}
    assert listed["TinyForCausalLM"]["certificate"]["verdict"] == "incomplete"
    assert "incomplete 3/3" in bestiary("models").out
    (site.root / "tiny_plugin-1.0.dist-info" / "RECORD").write_text("tiny_plugin.py,sha256=other,1\n")
    assert "other build" in bestiary("models").out


def test_part_of_it_is_no_certificate(bestiary: Run, site: Site, tmp_path: Path) -> None:
    reason = {"members": "its members are made while it runs"}
    tiny(site, contracts={"TinyForCausalLM": "tiny_contract:TestTiny"}, config={"model_type": "t"}, given_up=reason)
    result = bestiary("certify", "tiny-plugin", "--check", "found", "--check", "members")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0].startswith("# TinyForCausalLM (tiny_contract:TestTiny")
    assert "given up" in result.out and reason["members"] in result.out
    assert result.out.splitlines()[-1].startswith("partial: tiny-plugin 1.0: 1 of 1 checks passed (1 given up)")
    assert not (tmp_path / "cache" / "certificates").exists()
    wrong = bestiary("certify", "tiny-plugin", "--check", "fuond")
    assert wrong.code == 1 and "fuond" in wrong.err and "clean_import" in wrong.err


@pytest.mark.parametrize(
    ("source", "told"),
    [("import os\nos._exit(3)", "exit 3"), ("import ctypes\nctypes.string_at(0)", "SIGSEGV")],
    ids=["exits", "crashes"],
)
def test_a_plugin_that_takes_the_process_along_is_named_with_its_check(
    bestiary: Run, site: Site, source: str, told: str
) -> None:
    tiny(site, source)
    result = bestiary("certify", "tiny-plugin", "--json")
    assert result.code == 3
    assert result.data["verdict"] == "broken"
    checks = {each["check"]: each for each in result.data["architectures"][0]["checks"]}
    assert checks["found"]["status"] == "failed"
    assert f"the process ended by itself ({told})" in checks["found"]["message"]
    assert {checks[name]["status"] for name in ("clean_import", "members")} == {"not_run"}


def test_a_plugin_that_hangs_is_ended(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock leaps when the check begins, so that nobody has to wait."""
    tiny(site, "import time\ntime.sleep(600)")
    leap: list[int] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(leap), sleep=time.sleep)
    monkeypatch.setattr(watch, "time", clock)

    def on_change(outcome: watch.Outcome) -> None:
        if outcome.running is not None:
            leap.append(1000)

    outcome = watch.run(subject(site), tmp_path, checks=["found"], timeout_s=300, on_change=on_change)
    assert outcome.ended == "no end after 300 s"
    (found,) = outcome.checks
    assert (found.check, found.status) == ("found", "failed") and "no end after" in found.message


def test_a_plugin_that_does_not_import_fails_its_checks(bestiary: Run, site: Site) -> None:
    tiny(site, "import nothing_like_this")
    result = bestiary("certify", "tiny-plugin", "--check", "found")
    assert result.code == 1
    assert "# TinyForCausalLM: found failed" in result.out and "No module named 'nothing_like_this'" in result.out


def test_a_contract_that_cannot_be_had_is_a_problem_and_spoils_no_other(bestiary: Run, site: Site) -> None:
    modules = {
        "raises": "raise RuntimeError('no luck')",
        "stranger": "class TestTiny:\n    def test_x(self): pass",
        "reasonless": CONTRACT.format(config=None, given_up={"found": "no"}),
        "good": CONTRACT.format(config=None, given_up={}),
    }
    for name, text in modules.items():
        (site.root / f"contract_{name}.py").write_text(text)
    names = dict(zip(["AForCausalLM", "BForCausalLM", "CForCausalLM", "TinyForCausalLM"], modules, strict=True))
    contracts = {architecture: f"contract_{name}:TestTiny" for architecture, name in names.items()}
    tiny(site, contracts=contracts | {"DForCausalLM": "absent_module:TestTiny"}, others=[*"ABCD"])
    result = bestiary("certify", "tiny-plugin", "--check", "found", "--json")
    assert result.code == 3 and result.data["verdict"] == "broken"
    problems = sorted(result.data["problems"])
    told = ["absent_module", "no luck", "at least 10 characters", "this is no contract"]
    assert len(problems) == 4
    assert [words for words, text in zip(told, problems, strict=True) if words not in text] == []
    rows = {row["architecture"]: row for row in result.data["architectures"]}
    assert rows["TinyForCausalLM"]["contract"] == "contract_good:TestTiny"
    assert rows["TinyForCausalLM"]["checks"][0]["status"] == "passed"


def test_what_fails_for_one_reason_is_said_once() -> None:
    trace = "found.py:{}: in _\n    model.tell()\nE   AttributeError: no field"
    told = {"a": trace.format(1), "b": "off\n  got: 1\n  look:    pytest -k b", "c": trace.format(2),
            "d": "off\n  got: 2\n  look:    pytest -k d", "e": "off\n  got: 1\n  look:    pytest -k e"}  # fmt: skip
    groups = _alike({"check": name, "message": text} for name, text in told.items())
    assert [[each["check"] for each in group] for group in groups] == [["a", "c"], ["b", "e"], ["d"]]


def test_a_contract_that_ends_the_process_is_named(bestiary: Run, site: Site) -> None:
    tiny(site, contracts={"TinyForCausalLM": "tiny_contract:TestTiny"})
    (site.root / "tiny_contract.py").write_text("import os; os._exit(5)")
    result = bestiary("certify", "tiny-plugin", "--check", "found")
    assert result.code == 3
    assert "# problem" in result.out and "while tiny_contract:TestTiny was imported" in result.out
    assert result.out.splitlines()[-1].startswith("broken: tiny-plugin 1.0")
    (site.root / "tiny_contract.py").write_text("nonsense")
    out = bestiary("certify", "tiny-plugin", "--check", "found").out
    assert "# TinyForCausalLM (its contract cannot be used: checked without a model" in out
    assert "unchecked: TinyForCausalLM: its contract cannot be used" in out and "a class of a few lines" not in out


def test_a_contract_without_a_configuration_is_not_enough(bestiary: Run, site: Site) -> None:
    tiny(site, contracts={"TinyForCausalLM": "tiny_contract:TestTiny"})
    result = bestiary("certify", "TinyForCausalLM", "--json")
    assert result.code == 4
    assert result.data["kind"] == "architecture"
    assert result.data["unchecked"] == {"TinyForCausalLM": "its contract has no config"}
    assert result.data["counts"]["passed"] == 3 and result.data["counts"]["not_run"] > 5


def test_what_no_import_is_needed_to_refuse(bestiary: Run, site: Site, tmp_path: Path) -> None:
    tiny(site, contracts={"OtherForCausalLM": "tiny_contract:TestOther"})
    site.model("ahead", "AheadForCausalLM", api="9.0")
    site.model("twice", "TinyForCausalLM")
    site.add("odd-plugin", entry_points=b"[vllm_models]\nnonsense\n")
    site.add("only-hooks", hooks={"h": "only_hooks"})
    stranger = bestiary("certify", "tiny-plugin")
    assert stranger.code == 3 and "does not register: OtherForCausalLM" in stranger.err
    assert bestiary("certify", "ahead").code == 3
    double = bestiary("certify", "TinyForCausalLM")
    assert double.code == 3 and "bestiary certify tiny-plugin" in double.err
    assert bestiary("certify", "odd-plugin").code == 3
    assert bestiary("certify", "only-hooks").code == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.whl").write_text("x")
    (tmp_path / "model.py").touch()
    wrong = {
        "nothing-like-this": "no folder, wheel", tmp_path / "empty": "no pyproject.toml",
        tmp_path / "gone.whl": "no such file", tmp_path / "text.whl": "not a wheel's", "pluggy": "offers",
        tmp_path / "model.py": "this file is no wheel", "aheadforcausallm": "no folder, wheel",
    }  # fmt: skip
    for each, told in wrong.items():
        result = bestiary("certify", each, "--json")
        assert result.code == 2 and result.data["error"]["code"] == "BAD_TARGET", each
        assert told in result.data["error"]["message"]
    assert result.data["error"]["fix"] == "did you mean AheadForCausalLM?"
    assert bestiary("certify", "tiny-plugin", "--write-readme").code == 3  # the stranger comes first
    assert bestiary("certify", "twice", "--write-readme").code == 1


def test_without_pytest_the_error_says_what_to_install(
    bestiary: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    for command in (["certify", "x"], ["new", "x"]):
        result = bestiary(*command)
        assert result.code == 1 and "pip install 'bestiary[testing]'" in result.err


def subject(site: Site, **more: object) -> target.Subject:
    (found,) = (one for one in discovery.scan([str(site.root)]).plugins if one.name == "tiny-plugin")
    return target.Subject(target="t", kind="distribution", distribution=found, **more)  # type: ignore[arg-type]


def test_the_child_gets_an_environment_of_its_own(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(site)
    for name in ("BESTIARY_CONFIG", "PYTEST_ADDOPTS", "HF_TOKEN", "PYTHONSTARTUP", "SECRET"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = watch.environment(subject(site, overlay=tmp_path / "overlay"), tmp_path)
    assert not {"BESTIARY_CONFIG", "PYTEST_ADDOPTS", "HF_TOKEN", "PYTHONSTARTUP", "SECRET"} & set(found)
    places = found["PYTHONPATH"].split(os.pathsep)
    assert places[0] == str(tmp_path / "overlay") and "elsewhere" not in places
    assert (found["HOME"], found["HF_HUB_OFFLINE"], found["OMP_NUM_THREADS"]) == (str(tmp_path), "1", "1")
    assert found["BESTIARY_PLUGINS"] == "TinyForCausalLM=tiny-plugin"


def test_a_second_name_of_a_class_needs_no_contract_of_its_own(site: Site) -> None:
    models = {"AForCausalLM": "m:A", "A2ForCausalLM": "m:A", "BForCausalLM": "m:B"}
    site.add("tiny-plugin", models=models)
    found = subject(site)
    assert found.second_names({"AForCausalLM": 1}) == {"A2ForCausalLM": "AForCausalLM"}
    assert found.second_names({}) == {}


def test_arguments_are_completed(site: Site) -> None:
    tiny(site)
    values = {item.value for item in complete_target(None, None, "tiny")}  # type: ignore[arg-type]
    assert "tiny-plugin" in values
    assert "TinyForCausalLM" in {item.value for item in complete_target(None, None, "Tiny")}  # type: ignore[arg-type]
    assert [item.value for item in complete_check(None, None, "clean")] == ["clean_import"]  # type: ignore[arg-type]


def test_a_terminal_sees_each_check_as_it_ends(bestiary: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(site)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    result = bestiary("certify", "tiny-plugin", "--check", "found", "--json")
    assert result.code == 4 and result.data["verdict"] == "incomplete"
    (line,) = [each for each in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", result.err).splitlines() if " s  " in each]
    assert line.startswith("ok ") and "TinyForCausalLM" in line
