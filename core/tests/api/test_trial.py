"""A guarded import: what ends or hangs a process does so to a copy of it, and is an error here."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bestiary.api import trial
from bestiary.api.errors import BrokenPlugin, UsageError
from bestiary.api.probe import ProbeResult
from bestiary.api.registry import Registry
from bestiary.testing.fake_site import GOOD, Site

ENDS = {
    "exits": ("import os\nos._exit(3)", "crashed during import (exit 3) (from dist exits 1.0)"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "crashed during import (SIGSEGV) (from dist segfault 1.0)"),
    "killed": ("import os\nos.kill(os.getpid(), 9)", "crashed during import (SIGKILL) (from dist killed 1.0)"),
    "hangs": ("import time\ntime.sleep(60)", "hung during import: no answer in 1 s (from dist hangs 1.0)"),
}


def registry_of(site: Site, timeout_s: float = 20) -> Registry:
    return Registry([str(site.root)], cache_directory=site.root / "cache", probe_timeout_s=timeout_s)


def no_child(*_: Any, **__: Any) -> ProbeResult:
    raise AssertionError("a child process was started")


def forbid_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "probe", no_child)
    monkeypatch.setattr(os, "fork", no_child)


@pytest.mark.parametrize("name", ENDS)
def test_p03_an_import_that_ends_or_hangs_the_process_is_an_error_and_harms_no_other(
    site: Site, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cause = ENDS[name]
    site.add(name, models={"Bad": f"{name}:Bad"}, source=source)
    site.model("good", "Good")
    registry = registry_of(site, 1 if name == "hangs" else 20)
    with pytest.raises(BrokenPlugin) as raised:
        registry.find(["Bad"], guarded=True)
    assert (raised.value.message, raised.value.exit_code) == (cause, 3)
    assert registry.find(["Good"], guarded=True).model_class.__name__ == "Good"
    assert name not in sys.modules
    (row,) = [row for row in registry.list() if row.architecture == "Bad"]
    assert (row.status, row.cause) == ("broken", cause)
    if name != "hangs":  # for that may have been the machine's fault, and is tried again
        forbid_children(monkeypatch)
        with pytest.raises(BrokenPlugin, match=r"crashed during import"):
            registry_of(site).find(["Bad"], guarded=True)


def test_a_good_one_is_tried_once_a_build_and_its_capabilities_are_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    info = site.model("good", "Good")
    path = site.root / "good.py"
    path.write_text(f"print('imported')\n{path.read_text()}")
    registry = registry_of(site)
    assert registry.find(["Good"], guarded=True).model_class.__name__ == "Good"
    assert capfd.readouterr().out == "imported\n", "what the copy prints is not shown"
    (row,) = registry_of(site).list("cached")
    assert row.info is not None and row.info.categories == ("text_generation",)
    with monkeypatch.context() as patch:
        forbid_children(patch)
        del sys.modules["good"]
        registry_of(site).find(["Good"], guarded=True)
    del sys.modules["good"]
    info.joinpath("RECORD").write_text("good.py,sha256=other,3\n")
    asked = []
    monkeypatch.setattr(trial, "_tried", lambda *_: asked.append(1) or ProbeResult(outcome="failed", cause="x"))
    registry_of(site).find(["Good"], guarded=True)
    assert asked == [1], "another build is tried again"


def test_what_an_import_raises_is_seen_here_with_its_traceback(site: Site) -> None:
    site.add("raises", models={"Bad": "raises:Bad"}, source="raise ValueError('not today')")
    site.add("nothing", models={"None": "nothing:Model"}, source="class Model: pass")
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin, match=r"ValueError: not today \(from dist raises 1\.0\)") as raised:
        registry.find(["Bad"], guarded=True)
    assert isinstance(raised.value.__cause__, ValueError)
    assert not (site.root / "cache").exists(), "nothing is kept of it"


def test_a_fresh_interpreter_has_the_last_word(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.model("good", "Good")
    crashed = ProbeResult(outcome="crashed", cause="a lock that another thread held")
    monkeypatch.setattr(trial, "_copied", lambda *_: crashed)
    assert registry_of(site).find(["Good"], guarded=True).model_class.__name__ == "Good"


def test_there_is_no_copy_of_a_process_that_uses_cuda(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.model("good", "Good")
    monkeypatch.setattr(trial, "_uses_cuda", lambda: True)
    monkeypatch.setattr(os, "fork", no_child)
    assert registry_of(site).find(["Good"], guarded=True).model_class.__name__ == "Good"


def test_a_cache_that_cannot_be_written_is_no_matter(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.model("good", "Good")
    (site.root / "cache").write_text("a file")
    assert registry_of(site).find(["Good"], guarded=True).model_class.__name__ == "Good"
    assert caplog.text == ""


def test_data_is_guarded_as_well(site: Site) -> None:
    site.model("base", "Base")
    site.add("names", aliases={"Other": "names:ALIAS"}, source="import os\nos._exit(4)")
    with pytest.raises(BrokenPlugin, match=r"crashed during import \(exit 4\)"):
        registry_of(site).find(["Other"], guarded=True)


def living_children() -> set[str]:
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_a_trial_in_another_thread_leaves_nothing_behind(site: Site) -> None:
    (site.root / "fine.py").write_text(GOOD.format(name="Fine"))
    site.model("fine", "Fine")
    before, children = set(os.listdir("/proc/self/fd")), living_children()
    found: list[type] = []
    thread = threading.Thread(target=lambda: found.append(registry_of(site).find(["Fine"], guarded=True).model_class))
    thread.start()
    thread.join(30)
    assert [each.__name__ for each in found] == ["Fine"]
    assert set(os.listdir("/proc/self/fd")) == before
    assert living_children() <= children


def test_how_long_an_import_may_take_is_the_users_to_say(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("hangs", models={"Bad": "hangs:Bad"}, source=ENDS["hangs"][0])
    monkeypatch.setenv("BESTIARY_IMPORT_TIMEOUT", "0.5")
    registry = Registry([str(site.root)])
    with pytest.raises(BrokenPlugin, match=r"no answer in 0\.5 s") as raised:
        registry.find(["Bad"], guarded=True)
    assert str(raised.value.fix).endswith("BESTIARY_IMPORT_TIMEOUT=1")
    for wrong in ("soon", "0", "-1", "nan", "1e9"):
        monkeypatch.setenv("BESTIARY_IMPORT_TIMEOUT", wrong)
        with pytest.raises(UsageError, match="BESTIARY_IMPORT_TIMEOUT is refused"):
            registry.find(["Bad"], guarded=True)
