"""Registrars: functions that name architectures when they are called, asked elsewhere, called once, each alone."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from bestiary.api import trial
from bestiary.api.errors import BrokenPlugin, DuplicateArchitecture, UnknownArchitecture
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.testing.fake_site import GOOD, Site

WATCHER = """\
from contextlib import contextmanager
seen = []
@contextmanager
def watch():
    also = []
    seen.append(also)
    yield also
@contextmanager
def context():
    import sys
    sys.served = True
    try:
        yield
    finally:
        del sys.served
"""
REGISTERS = """\
import sys
calls = []
def register():
    calls.append(1)
    import watching
    from bestiary.api import ModelRegistry
    ModelRegistry.register_model("{name}", "{module}_model:{name}")
    watching.seen[-1].append("a tool parser")
"""
GROUP = "strange.plugins"


@pytest.fixture
def strange(site: Site) -> Site:
    """A site with a wheel that makes core look at another group."""
    site.add(
        "watching", source=WATCHER, groups={"bestiary_registrars": {GROUP: "watching:watch"}, GROUP: {"x": "absent:f"}}
    )
    return site


def registrar(site: Site, name: str, architecture: str, source: str | None = None) -> None:
    (site.root / f"{name}_model.py").write_text(GOOD.format(name=architecture))
    source = REGISTERS.format(name=architecture, module=name) if source is None else source
    site.add(name, api=None, source=source, groups={GROUP: {name: f"{name}:register"}})


def registry_of(site: Site, timeout_s: float = 20) -> Registry:
    return Registry([str(site.root)], cache_directory=site.root / "cache", probe_timeout_s=timeout_s)


def test_a_function_is_asked_elsewhere_and_called_here_once_for_its_own_architecture(strange: Site) -> None:
    registrar(strange, "one", "One")
    registrar(strange, "two", "Two")
    registry = registry_of(strange)
    assert registry.architectures() == [], "nobody has looked"
    assert [row.status for row in registry.list_registrars()] == ["unknown", "unknown"]
    model_class = registry.find(["One"], guarded=True).model_class
    assert (model_class.__module__, model_class.__name__) == ("one_model", "One")
    assert registry.find(["One"], guarded=True).model_class is model_class
    assert (sys.modules["one"].calls, "two" in sys.modules) == ([1], False)
    rows = registry.list_registrars()
    assert [(row.name, row.status, row.architectures, row.also) for row in rows] == [
        ("one", "ok", ("One",), ("a tool parser",)),
        ("two", "ok", ("Two",), ("a tool parser",)),
    ]
    assert registry.architectures() == ["One", "Two"]
    assert "One" not in ModelRegistry.architectures(), "it is the claim of a package, not this process's own"


def test_what_a_function_registers_is_kept(strange: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    registrar(strange, "one", "One")
    first = registry_of(strange)
    first.list_registrars("run")
    assert "one" not in sys.modules
    monkeypatch.setattr(trial, "_tried", lambda *_: pytest.fail("asked again"))
    later = registry_of(strange)
    assert later.architectures() == ["One"]
    (row,) = later.list()
    assert (row.architecture, row.distribution, row.entry_point, row.status) == ("One", "one", "one_model:One", "ok")
    assert later.find(["One"]).model_class.__name__ == "One"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('no')", "ValueError: no (from dist bad 1.0)"),
        ("raise SystemExit(3)", "SystemExit: 3 (from dist bad 1.0)"),
        ("import os; os._exit(4)", "crashed while registering (exit 4) (from dist bad 1.0)"),
        ("import time; time.sleep(60)", "hung while registering: no answer in 2 s (from dist bad 1.0)"),
    ],
)
def test_one_that_raises_exits_or_hangs_harms_no_other(strange: Site, body: str, cause: str) -> None:
    registrar(strange, "bad", "Bad", f"def register():\n    {body}\n")
    registrar(strange, "one", "One")
    registry = registry_of(strange, 2)
    assert registry.find(["One"], guarded=True).model_class.__name__ == "One"
    assert {row.name: row.status for row in registry.list_registrars()} == {"bad": "broken", "one": "ok"}
    assert {row.name: row.cause for row in registry.list_registrars()}["bad"] == cause
    with pytest.raises(UnknownArchitecture) as raised:
        registry.find(["Bad"], guarded=True)
    assert f"failed to register: bad:register of bad: {cause}" in raised.value.details


def test_a_class_object_is_registered_and_one_that_is_not_there_again_is_an_error(strange: Site) -> None:
    source = GOOD.format(name="Held") + (
        "def register():\n    import os\n    from bestiary.api import ModelRegistry\n"
        "    if not os.environ.get('NO_HELD'):\n        ModelRegistry.register_model('Held', Held)\n"
    )
    registrar(strange, "held", "Held", source)
    registry = registry_of(strange)
    assert registry.find(["Held"], guarded=True).model_class is sys.modules["held"].Held
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_HELD", "1")
        with pytest.raises(BrokenPlugin, match=r"no function of held 1\.0 has registered Held here"):
            registry_of(strange).find(["Held"])


def test_two_packages_that_claim_one_architecture_are_an_error_until_the_user_chooses(strange: Site) -> None:
    strange.model("good", "One")
    registrar(strange, "one", "One")
    registry = registry_of(strange)
    assert registry.find(["One"]).entry.distribution.name == "good", "the other one is not known yet"
    chosen = registry.find(["One"], {"One": "one"})
    assert chosen.model_class.__module__ == "one_model"
    with pytest.raises(DuplicateArchitecture) as raised:
        registry.find(["One"])
    assert any("one_model:One (by a function)" in line for line in raised.value.details)


def test_metadata_of_the_same_package_come_before_its_function_which_is_called_all_the_same(strange: Site) -> None:
    (strange.root / "both_model.py").write_text(GOOD.format(name="Both"))
    source = REGISTERS.format(name="Both", module="absent")
    strange.add("both", models={"Both": "both_model:Both"}, source=source, groups={GROUP: {"both": "both:register"}})
    registry = registry_of(strange)
    registry.list_registrars("run")
    assert registry.find(["Both"]).model_class.__module__ == "both_model"
    assert sys.modules["both"].calls == [1]


def test_models_are_imported_in_the_contexts_that_packages_name(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    contexts = {"ok": "watching:context", "raises": "watching:absent"}
    site.add("watching", source=WATCHER, groups={"bestiary_import_contexts": contexts})
    source = "import sys\nassert sys.served\n" + GOOD.format(name="Served")
    site.add("served", models={"Served": "served:Served"}, source=source)
    site.add("unfit", api="9.0", groups={"bestiary_import_contexts": {"unfit": "absent:context"}})
    registry = registry_of(site)
    assert registry.inspect("Served").categories == ("text_generation",), "in a child too"
    with caplog.at_level(logging.WARNING, "bestiary.registry"):
        assert registry.find(["Served"], guarded=True).model_class.__name__ == "Served"
    assert caplog.text.count("import context watching:absent is left out") == 1
    assert not hasattr(sys, "served")
    with registry.importing():
        assert sys.served  # type: ignore[attr-defined]


def test_answers_depend_on_the_wheel_that_takes_part_in_imports(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    info = site.add("watching", source=WATCHER, groups={"bestiary_import_contexts": {"ok": "watching:context"}})
    site.model("good", "Good")
    registry_of(site).inspect("Good")
    assert registry_of(site).list()[0].info is not None
    (info / "RECORD").write_text("watching.py,sha256=other,3\n")
    assert registry_of(site).list()[0].info is None


def test_groups_that_nobody_names_are_not_looked_at(site: Site, tmp_path: Path) -> None:
    registrar(site, "one", "One")
    registry = registry_of(site)
    assert registry.installation.plugins == ()
    with pytest.raises(UnknownArchitecture):
        registry.find(["One"])
