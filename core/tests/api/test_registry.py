"""The registry: one import, every failure with its cause, nothing dependent on the order of `sys.path`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bestiary.api import index, version
from bestiary.api.errors import (
    BestiaryError,
    BrokenPlugin,
    DuplicateArchitecture,
    IncompatiblePlugin,
    InvalidModel,
    UnknownArchitecture,
    UsageError,
)
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.api.rows import PluginRow
from bestiary.testing.fake_site import GOOD, Site


def rows(registry: Registry, **more: object) -> dict[str, PluginRow]:
    return {row.architecture or row.distribution: row for row in registry.list(**more)}  # type: ignore[arg-type]


def registry_of(*sites: Site) -> Registry:
    return Registry([str(site.root) for site in sites])


def test_resolving_imports_exactly_one_plugin(site: Site) -> None:
    site.model("first", "First")
    site.model("second", "Second")
    registry = registry_of(site)
    assert registry.resolve(["Unheard", "First", "Second"]).__name__ == "First"
    assert "first" in sys.modules
    assert "second" not in sys.modules
    assert registry.resolve("First") is registry.resolve(["First"])


BROKEN = {
    "p01_missing": ("import no_such_dependency_x", "ImportError: No module named 'no_such_dependency_x'"),
    "p02_raises": ("raise ValueError('not\\n today')", "ValueError: not today"),
    "p02_exit": ("raise SystemExit(4)", "SystemExit: 4"),
    "p02_interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "p02_recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "p02_warning": (
        "import warnings\nwarnings.simplefilter('error')\nwarnings.warn('old')", "UserWarning: old",
    ),
    "p02_syntax": ("def", "SyntaxError: invalid syntax"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_p01_p02_a_broken_plugin_is_its_own_row_and_an_error_when_asked_for(site: Site, name: str) -> None:
    source, cause = BROKEN[name]
    site.add(name, "1.2", models={"Broken": f"{name}:Broken"}, source=source)
    site.model("good", "Good")
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin) as raised:
        registry.resolve(["Broken"])
    assert raised.value.exit_code == 3
    assert cause in raised.value.message
    assert f"(from dist {name.replace('_', '-')} 1.2)" in raised.value.message
    assert raised.value.__cause__ is not None
    assert registry.resolve(["Good"]).__name__ == "Good"
    found = rows(registry)
    assert (found["Broken"].status, found["Good"].status) == ("broken", "ok")
    assert cause in found["Broken"].cause


def test_a_missing_module_and_a_wrong_attribute(site: Site) -> None:
    site.add("gone", models={"Gone": "not_there.at_all:Gone"})
    site.add("typo", models={"Typo": "typo:LlamaForCausaLM"}, source=GOOD.format(name="LlamaForCausalLM"))
    site.add("odd", models={"Odd": "odd"})
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin, match="ImportError: No module named 'not_there'"):
        registry.resolve(["Gone"])
    with pytest.raises(BrokenPlugin, match="it has 'LlamaForCausalLM'"):
        registry.resolve(["Typo"])
    with pytest.raises(BrokenPlugin, match="not module:Class"):
        registry.resolve(["Odd"])


@pytest.mark.parametrize("ending", ["raise", "raise ImportError('x')", "pass"])
def test_the_users_own_interrupt_still_stops_an_import(site: Site, ending: str) -> None:
    source = (
        "import time\n"
        "try:\n    print('here', flush=True)\n    time.sleep(30)\n"
        f"except KeyboardInterrupt:\n    {ending}\n"
    )
    site.add("slow", models={"Slow": "slow:Slow"}, source=source)
    program = (
        "from bestiary.api.registry import Registry\n"
        "try:\n"
        f"    Registry([{str(site.root)!r}]).resolve(['Slow'])\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    path = os.pathsep.join(filter(None, [str(site.root), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[0] == "interrupted\n"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("reverse", [False, True])
def test_p05_two_claimants_are_an_error_in_both_orders_until_the_user_chooses(
    two_sites: tuple[Site, Site], reverse: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = two_sites[::-1] if reverse else two_sites
    two_sites[0].model("bestiary-llama", "LlamaForCausalLM", "0.1.0", module="official")
    two_sites[1].model("llama-fork", "LlamaForCausalLM", "7.0", module="fork")
    for place in (two, one):
        monkeypatch.syspath_prepend(str(place.root))
    registry = registry_of(one, two)
    with pytest.raises(DuplicateArchitecture) as raised:
        registry.resolve(["LlamaForCausalLM"])
    error = raised.value
    assert error.exit_code == 3
    assert error.message == "2 distributions claim LlamaForCausalLM: bestiary-llama 0.1.0, llama-fork 7.0"
    assert error.details[0].startswith(f"bestiary-llama 0.1.0 (official) at {two_sites[0].root}")
    assert error.details[1].startswith(f"llama-fork 7.0 at {two_sites[1].root}")
    assert "--plugin LlamaForCausalLM=bestiary-llama" in str(error.fix)
    assert {row.status for row in registry.list()} == {"duplicate"}
    assert [row.official for row in registry.list()] == [True, False]

    assert registry.resolve(["LlamaForCausalLM"], plugins=["LlamaForCausalLM=Llama_Fork"]).__module__ == "fork"
    monkeypatch.setenv("BESTIARY_PLUGINS", "LlamaForCausalLM=bestiary-llama")
    assert registry.resolve(["LlamaForCausalLM"]).__module__ == "official"
    assert [row.status for row in registry.list()] == ["ok", "duplicate"]
    monkeypatch.delenv("BESTIARY_PLUGINS")
    config = tmp_path / "config" / "bestiary" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[plugins]\nLlamaForCausalLM = "llama-fork"\n')
    assert registry.resolve(["LlamaForCausalLM"]).__module__ == "fork"
    with pytest.raises(UsageError, match="nobody does not provide LlamaForCausalLM"):
        registry.resolve(["LlamaForCausalLM"], plugins=["LlamaForCausalLM=nobody"])


@pytest.mark.parametrize("text", ["plugins = 3", "[plugins]\nA = 3", "[plugins", "\0"])
def test_a_bad_configuration_file_is_a_usage_error(
    site: Site, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.model("good", "Good")
    path = tmp_path / "choices.toml"
    path.write_text(text)
    monkeypatch.setenv("BESTIARY_CONFIG", str(path))
    with pytest.raises(UsageError):
        registry_of(site).resolve(["Good"])


def test_a_choice_between_two_modules_of_one_name_is_never_answered_with_the_other(
    two_sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = two_sites
    one.model("one", "Arch", module="same_module")
    two.model("two", "Arch", module="same_module")
    for place in (two, one):
        monkeypatch.syspath_prepend(str(place.root))
    registry = registry_of(one, two)
    assert registry.resolve(["Arch"], plugins=["Arch=one"]).__module__ == "same_module"
    with pytest.raises(BrokenPlugin, match="hidden by another of the same name"):
        registry.resolve(["Arch"], plugins=["Arch=two"])


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("2.0", "written for core API 2.0; core offers 1.0"),
        ("1.7", "written for core API 1.7; core offers 1.0"),
        ("0.9", "written for core API 0.9; core offers 1.0"),
        ("1.x", "written for core API '1.x'; core offers 1.0"),
        ("1", "written for core API '1'; core offers 1.0"),
        (None, "does not say which core API it was written for; core offers 1.0"),
    ],
)
def test_p07_an_incompatible_plugin_is_refused_with_both_numbers_and_the_remedy(
    site: Site, stated: str | None, says: str
) -> None:
    site.model("future", "Future", "3.1", api=stated)
    registry = registry_of(site)
    with pytest.raises(IncompatiblePlugin) as raised:
        registry.resolve(["Future"])
    assert raised.value.message == f"future 3.1 {'was ' if stated else ''}{says}"
    wanted = "pip install --upgrade bestiary" if stated in ("2.0", "1.7") else "pip install --upgrade future"
    assert str(raised.value.fix).startswith(wanted)
    assert "future" not in sys.modules
    assert rows(registry)["Future"].status == "incompatible"


def test_api_versions_fit_within_a_major() -> None:
    assert version.fits((1, 0), (1, 3))
    assert version.fits((1, 3), (1, 3))
    assert not version.fits((1, 4), (1, 3))
    assert not version.fits((0, 1), (1, 3))
    assert version.incompatibility("x", "1", ["2.0", "1.1"], (1, 3)) is None
    assert version.parse("01.0") is None
    assert version.parse("1.0\n") is None


P08 = {
    "function": "def Model(): pass",
    "instance": "Model = object()",
    "nothing": "class Model: pass",
    "signature": GOOD.format(name="Model").replace("input_ids, positions", "ids"),
    "descriptor": "class Raising:\n    def __get__(self, *_): raise RuntimeError('ha')\n"
    + GOOD.format(name="Model")
    + "    supports_lora = True\n    packed_modules_mapping = Raising()\n",
    "p09_lora": GOOD.format(name="Model") + "    supports_lora = True\n",
    "p09_pp": GOOD.format(name="Model") + "    supports_pp = True\n",
}


@pytest.mark.parametrize("case", P08)
def test_p08_p09_what_is_no_model_class_is_refused_with_every_member(site: Site, case: str) -> None:
    site.add("bad-class", models={"Bad": "bad_class:Model"}, source=P08[case])
    with pytest.raises(InvalidModel) as raised:
        registry_of(site).resolve(["Bad"])
    assert raised.value.exit_code == 3
    text = str(raised.value)
    assert {
        "function": "a function",
        "instance": "an instance of object",
        "nothing": "compute_logits is missing; expected: def compute_logits(self, hidden_states: T)",
        "signature": "requires ids, which callers do not pass",
        "descriptor": "packed_modules_mapping raises RuntimeError: ha",
        "p09_lora": "SupportsLoRA.packed_modules_mapping is missing",
        "p09_pp": "SupportsPP.make_empty_intermediate_tensors is missing",
    }[case] in text
    counts = {"function": 1, "instance": 1, "nothing": 4, "signature": 3, "descriptor": 1, "p09_lora": 1, "p09_pp": 2}
    assert len(raised.value.details) == counts[case], text


def test_p11_malformed_metadata_is_a_row_and_named_when_something_is_not_found(site: Site) -> None:
    site.add("garbled", entry_points="[vllm_models]\nnonsense\n")
    site.model("good", "Good")
    registry = registry_of(site)
    assert rows(registry)["garbled-1.0"].status == "malformed"
    with pytest.raises(UnknownArchitecture, match="garbled"):
        registry.resolve(["Missing"])


def test_an_unknown_architecture_names_what_is_near_and_what_to_install(site: Site) -> None:
    site.model("good", "GoodForCausalLM")
    site.add("broken", models={"BrokenForCausalLM": "broken:X"}, source="1/0")
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin):
        registry.resolve(["BrokenForCausalLM"])
    with pytest.raises(UnknownArchitecture) as raised:
        registry.resolve(["QWenLMHeadModel"])
    assert raised.value.exit_code == 2
    assert raised.value.fix == "pip install bestiary-qwen"
    assert any("BrokenForCausalLM: ZeroDivisionError" in line for line in raised.value.details)
    with pytest.raises(UnknownArchitecture) as raised:
        registry.resolve(["GoodForCausalLN"])
    assert raised.value.details[0].startswith("near 'GoodForCausalLN': GoodForCausalLM, ")
    with pytest.raises(UnknownArchitecture) as raised:
        registry.resolve(["LLamaForCausalLM"])
    assert raised.value.fix == "pip install bestiary-llama"
    with pytest.raises(UnknownArchitecture, match="names none"):
        registry.resolve([])


@pytest.mark.parametrize("names", [[None], [3, {}], [["LlamaForCausalLM"]], ["x" * 10**6], ["y"] * 10**5])
def test_hostile_architectures_are_unknown_quickly_and_shown_short(site: Site, names: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(UnknownArchitecture) as raised:
        registry_of(site).resolve(names)
    assert time.monotonic() - start < 5
    assert len(str(raised.value)) < 4000


def test_the_index_lists_every_official_package() -> None:
    assert index.packages()["Qwen3MoeForCausalLM"] == "bestiary-qwen"
    assert set(index.packages().values()) <= index.official()


def test_of_several_names_the_first_that_can_be_had_is_taken_with_a_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.add("broken", models={"First": "broken:X"}, source="1/0")
    site.model("good", "Second")
    registry = registry_of(site)
    with caplog.at_level(logging.WARNING):
        assert registry.resolve(["Unknown", "First", "Second"]).__name__ == "Second"
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(BrokenPlugin):
        registry.resolve(["First", "Unknown"])


def test_registering_by_hand_wins_with_a_logged_line(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.model("installed", "Arch")
    (site.root / "by_hand.py").write_text(GOOD.format(name="Mine"))
    registry = registry_of(site)
    with caplog.at_level(logging.WARNING):
        registry.register_model("Arch", "by_hand:Mine")
    assert "by_hand:Mine, registered by hand, replaces installed:Arch (dist installed 1.0)" in caplog.text
    assert "by_hand" not in sys.modules
    assert registry.resolve(["Arch"]).__name__ == "Mine"
    eager = registry.resolve(["Arch"])
    registry.register_model("Other", eager)
    assert registry.resolve(["Other"]) is eager
    assert registry.inspect("Other").categories == ("text_generation",)
    assert [(row.architecture, row.status) for row in registry.list()] == [
        ("Arch", "ok"), ("Arch", "duplicate"), ("Other", "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["no_colon", "a b:C", ":C", "", "a:"])
def test_registering_nonsense(site: Site, model: str) -> None:
    with pytest.raises(UsageError):
        ModelRegistry.register_model("Arch", model)


def test_registering_a_class_that_is_no_model_is_refused_at_once(site: Site) -> None:
    with pytest.raises(InvalidModel):
        ModelRegistry.register_model("Arch", dict)
    assert "Arch" not in ModelRegistry.architectures()


def test_j01_rows_as_data_with_the_record_checked(site: Site) -> None:
    info = site.model("fine", "Fine", "2.0")
    site.model("touched", "Touched")
    (site.root / "touched.py").write_text("# changed")
    editable = site.model("edited", "Edited")
    editable.joinpath("direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": True}}))
    found = rows(registry_of(site), verify=True)
    assert {name: row.record for name, row in found.items()} == {
        "Fine": "ok", "Touched": "modified", "Edited": "editable",
    }  # fmt: skip
    data = json.loads(json.dumps(found["Fine"].as_dict()))
    assert data["distribution"] == "fine"
    assert data["version"] == "2.0"
    assert data["path"] == str(info)
    assert data["entry_point"] == "fine:Fine"
    assert data["api_version"] == "1.0"


def test_p16_what_is_installed_while_we_run_appears_after_refresh_and_classes_stay(site: Site) -> None:
    site.model("early", "Early")
    registry = registry_of(site)
    held = registry.resolve(["Early"])
    site.model("late", "Late")
    with pytest.raises(UnknownArchitecture):
        registry.resolve(["Late"])
    registry.refresh()
    assert registry.resolve(["Late"]).__name__ == "Late"
    assert registry.resolve(["Early"]) is held


def test_every_error_is_a_leaf_with_code_and_fix(site: Site) -> None:
    site.model("future", "Future", api="9.0")
    with pytest.raises(BestiaryError) as raised:
        registry_of(site).resolve(["Future"])
    assert raised.value.as_dict()["code"] == "INCOMPATIBLE_PLUGIN"
    assert raised.value.fix
