"""`bestiary models` and `bestiary doctor`: rows, causes, JSON, exit codes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bestiary.api import index
from bestiary.api.registry import ModelRegistry
from bestiary.serve.cli import output
from bestiary.testing.fake_site import Site

from .conftest import Run

RECORDERS = """
from bestiary.api.hooks import hookimpl

class Recorder:
    name = "fast"

    @staticmethod
    def why_not(target):
        return None

    @staticmethod
    def describe():
        return {'threads': 3}

    def record(self, step):
        raise NotImplementedError

@hookimpl
def step_recorders():
    return {"fast": Recorder}
"""


@pytest.fixture(autouse=True)
def more_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped index, with a package that is installed nowhere."""
    listed = {**index.packages(), "SphinxForCausalLM": "bestiary-sphinx"}
    monkeypatch.setattr(index, "packages", lambda: listed)


def test_models_as_data(bestiary: Run, site: Site) -> None:
    site.model("good-plugin", "GoodForCausalLM", "2.1")
    site.add("odd-plugin", entry_points=b"[vllm_models]\nnonsense\n")
    document = bestiary("models", "--json").data
    rows = {row["architecture"]: row for row in document["architectures"]}
    assert rows["GoodForCausalLM"]["distribution"] == "good-plugin"
    assert (rows["GoodForCausalLM"]["status"], rows["GoodForCausalLM"]["info"]) == ("ok", None)
    assert rows[""]["status"] == "malformed" and "nonsense" in rows[""]["cause"]
    assert document["short_names"][0]["name"] == "smollm2"
    offered = {name for each in document["installable"] for name in each["architectures"]}
    assert "SphinxForCausalLM" in offered and not offered & set(rows)
    assert set(bestiary("models", "--json", "--installed").data) == {"architectures", "registrars"}


def test_functions_that_register_are_rows_with_what_they_register(bestiary: Run, site: Site) -> None:
    watcher = "from contextlib import contextmanager\n@contextmanager\ndef watch():\n    yield ['a parser']\n"
    site.add("watching", source=watcher, groups={"bestiary_registrars": {"strange.plugins": "watching:watch"}})
    source = (
        "def good():\n    from bestiary.api import ModelRegistry\n"
        "    ModelRegistry.register_model('StrangeForCausalLM', 'strange:absent')\n"
        "def bad():\n    raise ValueError('no')\n"
    )
    functions = {"good": "strange:good", "bad": "strange:bad"}
    site.add("strange", api=None, source=source, groups={"strange.plugins": functions})
    before = bestiary("models")
    assert before.out.count("unknown") == 2 and "? under registers" in before.out
    document = bestiary("doctor", "--json").data
    rows = {row["name"]: row for row in document["registrars"]}
    assert (rows["good"]["architectures"], rows["good"]["also"]) == (["StrangeForCausalLM"], ["a parser"])
    assert "strange:bad of strange: ValueError: no (from dist strange 1.0)" in document["problems"]
    (line,) = [line for line in bestiary("models", "--installed").out.splitlines() if line.startswith("strange:good")]
    assert "ok" in line and "StrangeForCausalLM, a parser" in line


def test_models_for_people(bestiary: Run, site: Site) -> None:
    site.model("good-plugin", "GoodForCausalLM", "2.1")
    site.model("plugin-a", "TwiceForCausalLM")
    site.model("plugin-b", "TwiceForCausalLM", module="plugin_b")
    result = bestiary("models")
    lines = {tuple(line.split()[:2]): line for line in result.out.splitlines()}
    assert lines["GoodForCausalLM", "good-plugin"].split()[2:7] == ["2.1", "1.0", "ok", "-", "?"]
    assert "duplicate" in lines["TwiceForCausalLM", "plugin-a"] and "duplicate" in lines["TwiceForCausalLM", "plugin-b"]
    assert "pip install bestiary-sphinx" in result.out
    (legend,) = [line for line in result.out.splitlines() if line.startswith("?")]
    assert "--inspect" in legend
    chosen = bestiary("models", "--plugin", "TwiceForCausalLM=plugin-b", "--installed").out
    assert "not used: plugin-b" in chosen and "bestiary-sphinx" not in chosen


def test_inspection_tells_capabilities_and_causes(bestiary: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRegistry, "_paths", [str(site.root)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site.root), os.environ.get("PYTHONPATH", "")]))
    site.model("good-plugin", "GoodForCausalLM")
    site.add("broken-one", models={"BrokenOne": "broken_one:Model"}, source="raise RuntimeError('no luck')")
    rows = {row["architecture"]: row for row in bestiary("models", "--inspect", "--json").data["architectures"]}
    assert rows["GoodForCausalLM"]["info"]["categories"] == ["text_generation"]
    assert not any(line.startswith("?") for line in bestiary("models", "--inspect").out.splitlines())
    assert rows["BrokenOne"]["status"] == "broken" and "no luck" in rows["BrokenOne"]["cause"]


def test_doctor_names_what_is_wrong_and_strict_is_exit_3(bestiary: Run, site: Site) -> None:
    site.model("good-plugin", "GoodForCausalLM")
    (site.root / "good_plugin.py").write_text("changed = True")
    site.model("plugin-a", "TwiceForCausalLM")
    site.model("plugin-b", "TwiceForCausalLM", module="plugin_b")
    site.add("hook-plugin", hooks={"h": "hook_plugin"}, source="raise RuntimeError('bad hook')")
    result = bestiary("doctor", "--no-probe", "--json")
    assert result.code == 0
    problems = "\n".join(result.data["problems"])
    assert "TwiceForCausalLM: duplicate" in problems
    assert "good-plugin: installed files differ" in problems
    assert "bad hook" in problems
    records = {row["distribution"]: row["record"] for row in result.data["plugins"]}
    assert records["good-plugin"] == "modified" and records["plugin-a"] == "ok"
    assert any(row["status"] == "broken" for row in result.data["hooks"])
    assert bestiary("doctor", "--no-probe", "--strict").code == 3


def test_doctor_on_a_good_machine(bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_PLUGINS", "LlamaForCausalLM=bestiary-llama")
    document = bestiary("doctor", "--no-probe", "--json", "--plugin", "MistralForCausalLM=bestiary-llama").data
    assert document["versions"]["torch"] and document["versions"]["bestiary"]
    assert document["cpu"]["usable_cores"] >= 1 and document["memory"]["free_memory"]
    chosen = {each["op"]: each for each in document["ops"]}
    assert chosen["linear"]["chosen"] == "by_shape"
    assert "deterministic" in chosen["linear"]["others"]["fixed_tile"]
    assert [each["state"] for each in document["attention_backends"]].count("chosen") == 1
    places = {each["name"]: each["from"] for each in document["plugin_choices"]}
    assert places == {"LlamaForCausalLM": "BESTIARY_PLUGINS", "MistralForCausalLM": "--plugin"}
    assert not [text for text in document["problems"] if "chooses" in text]
    cache = next(each for each in document["directories"] if each["what"] == "cache")
    assert cache == {"what": "cache", "path": str(tmp_path / "cache"), "writable": True}


def test_doctor_says_that_kernels_are_missing(bestiary: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "kernel_packages", lambda: {"cpu": "fast-steps"})
    kernels = bestiary("doctor", "--no-probe", "--json").data["kernels"]
    assert kernels["BESTIARY_KERNELS"] == "torch"  # the tests' own setting
    assert kernels["native"] == "fast-steps is not installed: pip install fast-steps"
    assert kernels["step_recorder"] == "none: cuda_graphs: for CUDA"
    assert kernels["attention_backend"] == "torch" and kernels["libraries"] == {}


def test_doctor_says_what_computes_a_model(bestiary: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "kernel_packages", lambda: {"cpu": "fast-steps"})
    site.add("fast-steps", hooks={"kernels": "fast_steps"}, source=RECORDERS)
    assert bestiary("doctor", "--no-probe", "--json").data["kernels"]["native"] == "left out: BESTIARY_KERNELS is torch"
    monkeypatch.setenv("BESTIARY_KERNELS", "auto")
    kernels = bestiary("doctor", "--no-probe", "--json").data["kernels"]
    assert kernels["native"] == "used where they can run"
    assert kernels["libraries"]["fast"] == {"threads": 3}
    assert re.search(r"fast: threads +3", bestiary("doctor", "--no-probe").out)


def test_a_library_that_cannot_be_loaded_is_a_problem(
    bestiary: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BESTIARY_KERNELS", "auto")
    broken = RECORDERS.replace("return {'threads': 3}", "raise OSError('no such object')")
    site.add("broken-steps", hooks={"kernels": "broken_steps"}, source=broken)
    document = bestiary("doctor", "--no-probe", "--json").data
    assert document["kernels"] is None and document["ops"]
    assert "kernels: OSError: no such object" in document["problems"]


def test_a_choice_for_what_nobody_offers_is_a_problem_with_its_place(
    bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "choices.toml"
    path.write_text('[plugins]\nLlammaForCausalLM = "bestiary-llama"\n"quantization_methods.int8" = "bestiary"\n')
    monkeypatch.setenv("BESTIARY_CONFIG", str(path))
    document = bestiary("doctor", "--no-probe", "--json").data
    (problem,) = [text for text in document["problems"] if "chooses" in text]
    assert problem == f"{path} chooses bestiary-llama for LlammaForCausalLM, which nothing installed offers"
    assert {each["from"] for each in document["plugin_choices"]} == {str(path)}


def test_a_section_that_fails_does_not_hide_the_others(
    bestiary: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("bestiary.serve.cli.machine._read", lambda path: 1 / 0)
    document = bestiary("doctor", "--no-probe", "--json").data
    assert document["cpu"] is None and document["ops"]
    assert any("ZeroDivisionError" in text for text in document["problems"])
    assert any("cannot be written" in text for text in document["problems"])


def test_a_terminal_gets_a_drawn_table_and_no_foreign_escapes(
    bestiary: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = output.Table("things", ("name", "cause"), [("a\x1b[31mb", "[bold]not markup[/bold]"), ("c", "")])
    assert list(output.plain_lines(table)) == [
        "name        cause",
        "a\\x1b[31mb  [bold]not markup[/bold]",
        "c           -",
    ]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    output.show([table])
    drawn = capsys.readouterr().out
    assert "[bold]not markup[/bold]" in drawn and "\x1b[31m" not in drawn and "─" in drawn
    assert all(len(re.sub(r"\x1b\[\d*m", "", line)) <= 60 for line in drawn.splitlines())
