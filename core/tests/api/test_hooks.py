"""Hooks: broken modules are rows and stop nobody, names offered twice are errors that name both."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from bestiary.api import hook_manager, hooks
from bestiary.api.discovery import scan
from bestiary.api.errors import BrokenPlugin, UsageError
from bestiary.api.hook_manager import HookManager, HookRow
from bestiary.testing.fake_site import Site

IMPORT = "from bestiary.api.hooks import hookimpl\n"


OWN_HOOKS = ("bestiary.engine.loader.sources", "bestiary.serve.text.parsers.families")


@pytest.fixture(autouse=True)
def few_built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that core comes to offer must not change what is tested here."""
    monkeypatch.setattr(hook_manager, "BUILTIN_HOOKS", OWN_HOOKS)


def offering(kind: str, mapping: str) -> str:
    return f"{IMPORT}@hookimpl\ndef {kind}():\n    return {mapping}\n"


def loaded(site: Site, *plugins: str) -> HookManager:
    return HookManager(scan([str(site.root)]), plugins).load()


def rows(manager: HookManager) -> dict[str, HookRow]:
    return {row.distribution: row for row in manager.rows if row.distribution != "bestiary"}


def test_a_package_offers_names_and_only_the_chosen_one_is_imported(site: Site) -> None:
    (site.root / "heavy.py").write_text("class Parser: pass\n")
    site.add("giver", hooks={"any": "giver"}, source=offering("tool_call_parsers", "{'mine': 'heavy:Parser'}"))
    manager = loaded(site)
    assert {"hermes", "mine"} < set(manager.names("tool_call_parsers"))
    assert "heavy" not in sys.modules
    assert manager.get("tool_call_parsers", "mine").__name__ == "Parser"
    assert rows(manager)["giver"].offers == ("tool_call_parsers.mine",)


@pytest.mark.parametrize("kind", hooks.KINDS)
def test_every_hook_takes_a_string_or_an_object(site: Site, kind: str) -> None:
    site.add("giver", hooks={"any": "giver"}, source=offering(kind, "{'number': 7, 'text': 'giver:NAME'}") + "NAME = 8")
    manager = loaded(site)
    assert (manager.get(kind, "number"), manager.get(kind, "text")) == (7, 8)


BROKEN = {
    "import_error": ("import no_such_y", "ImportError: No module named 'no_such_y'"),
    "system_exit": ("raise SystemExit(1)", "SystemExit: 1"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "raising_hook": (f"{IMPORT}@hookimpl\ndef weight_formats():\n    raise OSError('disk')", "OSError: disk"),
    "exiting_hook": (f"{IMPORT}@hookimpl\ndef weight_formats():\n    raise SystemExit(3)", "SystemExit: 3"),
    "no_mapping": (offering("weight_formats", "['a']"), "TypeError: weight_formats() must return a mapping"),
    "bad_names": (offering("weight_formats", "{3: 'a:b'}"), "TypeError: weight_formats() must return a mapping"),
    "misspelt": (offering("wait_formats", "{}"), "wait_formats: no such hook"),
    "arguments": (f"{IMPORT}@hookimpl\ndef weight_formats(extra):\n    return {{}}", "PluginValidationError"),
}


FATAL = {
    "leaves": ("import os; os._exit(0)", "crashed during import (exit 0)"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "crashed during import (SIGSEGV)"),
    "sleeper": ("import time; time.sleep(600)", "hung during import: no answer in 2 s"),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_module_that_would_take_us_along_is_a_row(site: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_manager, "IMPORT_TIMEOUT_S", 2.0)
    source, cause = FATAL[name]
    site.add(name, hooks={"any": name}, source=source)
    site.add("zz-good", hooks={"any": "zz_good"}, source=offering("weight_formats", "{'fine': 'x:y'}"))
    for _ in range(2):  # the second time from what is kept of the first, where anything is
        manager = loaded(site)
        assert rows(manager)[name].status == "broken"
        assert cause in rows(manager)[name].cause
        assert manager.names("weight_formats") == ("fine",)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_module_is_a_row_and_a_line_and_stops_nobody(
    site: Site, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, cause = BROKEN[name]
    site.add(name, hooks={"any": name}, source=source)
    site.add("zz-good", hooks={"any": "zz_good"}, source=offering("weight_formats", "{'fine': 'x:y'}"))
    with caplog.at_level(logging.WARNING):
        manager = loaded(site)
    row = rows(manager)[name.replace("_", "-")]
    assert row.status == "broken"
    assert cause in row.cause
    assert f"(from dist {name.replace('_', '-')}" in row.cause
    assert manager.names("weight_formats") == ("fine",)
    assert rows(manager)["zz-good"].status == "ok"
    assert len(caplog.records) == 1
    assert cause in caplog.text


def test_an_incompatible_package_is_a_row(site: Site) -> None:
    site.add("future", hooks={"any": "future"}, api="2.0", source="1/0")
    row = rows(loaded(site))["future"]
    assert row.status == "incompatible"
    assert "2.0" in row.cause
    assert "future" not in sys.modules


def test_a_name_offered_twice_names_both_until_the_user_chooses(site: Site) -> None:
    for name in ("aa", "bb"):
        site.add(name, hooks={"any": name}, source=offering("tool_call_parsers", f"{{'twin': '{name}'}}"))
    manager = loaded(site)
    with pytest.raises(BrokenPlugin) as raised:
        manager.get("tool_call_parsers", "twin")
    assert raised.value.error_code == "DUPLICATE_HOOK"
    assert "aa and bb" in raised.value.message
    assert manager.get("tool_call_parsers", "hermes").closing == "</tool_call>"
    assert loaded(site, "tool_call_parsers.twin=bb").get("tool_call_parsers", "twin").__name__ == "bb"
    with pytest.raises(BrokenPlugin, match="not by cc"):
        loaded(site, "tool_call_parsers.twin=cc").get("tool_call_parsers", "twin")


def test_unknown_names_and_objects_that_cannot_be_imported(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.add("giver", hooks={"any": "giver"}, source=offering("step_observers", "{'gone': 'not_there:X', 'int': 3}"))
    manager = loaded(site)
    with pytest.raises(UsageError) as raised:
        manager.get("tool_call_parsers", "hermez")
    assert raised.value.fix == "did you mean 'hermes'?"
    with pytest.raises(BrokenPlugin, match=r"No module named 'not_there' \(from dist giver\)"):
        manager.get("step_observers", "gone")
    with caplog.at_level(logging.WARNING):
        assert manager.all("step_observers") == {"int": 3}
    assert "step_observers.gone is left out" in caplog.text


def test_listing_what_these_modules_offer_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from bestiary.api import hook_manager\n"
        f"hook_manager.BUILTIN_HOOKS = {OWN_HOOKS}\n"
        "manager = hook_manager.HookManager().load()\n"
        "assert 'short-names' in manager.names('model_sources')\n"
        "assert 'think' in manager.names('reasoning_parsers')\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'tokenizers', 'importlib_metadata'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


def test_more_built_ins_can_be_registered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.root / "ring.py").write_text(offering("attention_backends", "{'reference': 'ring:X'}"))
    monkeypatch.setattr(hook_manager, "_registered", [])
    hook_manager.register_builtin("ring")
    hook_manager.register_builtin("ring")
    manager = loaded(site)
    assert manager.names("attention_backends") == ("reference",)
    assert [(row.entry_point, row.offers) for row in manager.rows if row.entry_point not in OWN_HOOKS] == [
        ("ring", ("attention_backends.reference",))
    ]
