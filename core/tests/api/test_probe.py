"""The probe: a child that crashes, exits, hangs or prints changes nothing but its own answer; answers are kept."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from bestiary.api import probe_cache
from bestiary.api import registry as registry_module
from bestiary.api.errors import BrokenPlugin, InvalidModel
from bestiary.api.probe import ProbeResult, Question, probe
from bestiary.api.registry import Registry
from bestiary.testing.fake_site import GOOD, Site

BAD = {
    "exits": ("import os\nos._exit(3)", "crashed", "crashed during import (exit 3) (from here)"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "crashed", "crashed during import (SIGSEGV) (from here)"),
    "killed": ("import os\nos.kill(os.getpid(), 9)", "crashed", "crashed during import (SIGKILL) (from here)"),
    "system_exit": ("raise SystemExit(0)", "failed", "SystemExit: 0 (from here)"),
    "interrupt": ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt (from here)"),
    "dependency": ("import no_such_x", "failed", "ImportError: No module named 'no_such_x' (from here)"),
    "no_model": ("class Model: pass", "invalid", "Model of here is not a model class: 4 problem(s)"),
}


@pytest.mark.parametrize("name", BAD)
def test_p01_p02_p03_bad_imports_are_answers(site: Site, name: str) -> None:
    source, outcome, cause = BAD[name]
    (site.root / f"{name}.py").write_text(source)
    result = probe(Question(value=f"{name}:Model", architecture="Model", origin="here"), timeout_s=20)
    assert (result.outcome, result.cause) == (outcome, cause)
    error = result.error()
    assert isinstance(error, InvalidModel if outcome == "invalid" else BrokenPlugin)
    assert ProbeResult.from_dict(result.as_dict()) == result


def test_a_hanging_import_is_killed_with_all_its_children(site: Site) -> None:
    marker = site.root / "grandchild"
    (site.root / "hanging.py").write_text(
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '60']); open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    asked = Question(value="hanging:Model", architecture="Model", origin="dist hanging 1.0")
    result = probe(asked, timeout_s=1.0)
    assert time.monotonic() - start < 8
    assert (result.outcome, result.cause) == (
        "hung", "hung during import: no answer in 1 s (from dist hanging 1.0)",
    )  # fmt: skip
    deadline = time.monotonic() + 5
    while _running(int(marker.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _running(int(marker.read_text()))


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_good_class_is_described_whatever_it_prints_and_without_an_accelerator(site: Site) -> None:
    source = (
        "import os, sys\nprint('{\"outcome\": \"no\"}' * 1000); sys.stderr.write('noise' * 1000)\n"
        "assert os.environ['CUDA_VISIBLE_DEVICES'] == '' and not sys.stdin.read()\n"
    )
    (site.root / "noisy.py").write_text(source + GOOD.format(name="Noisy"))
    open_before = len(os.listdir("/proc/self/fd"))
    result = probe(Question(value="noisy:Noisy", architecture="Arch", origin="here"), timeout_s=20)
    assert result.outcome == "ok"
    assert result.info is not None
    assert (result.info.architecture, result.info.categories) == ("Arch", ("text_generation",))
    assert len(os.listdir("/proc/self/fd")) == open_before


def count_probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the child by an answer that depends on the name, and notes who was asked about."""
    asked: list[str] = []

    def fake(question: Question, **_: float) -> ProbeResult:
        architecture = question.architecture
        asked.append(architecture)
        if architecture == "Hung":
            return ProbeResult(outcome="hung", cause="hung during import")
        if architecture == "Broken":
            return ProbeResult(outcome="failed", cause="ImportError: x")
        cls = type(architecture, (), {})
        return ProbeResult(outcome="ok", info=registry_module.capabilities(cls, architecture))

    monkeypatch.setattr("bestiary.api.probe.probe", fake)
    return asked


def test_answers_are_kept_until_something_they_depend_on_changes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_probes(monkeypatch)
    info = site.model("fine", "Fine")
    site.add("broken", models={"Broken": "broken:X"}, source="import x")
    site.add("hung", models={"Hung": "hung:X"})
    assert all(row.info is None and row.status == "ok" for row in Registry([str(site.root)]).list())
    assert asked == []

    def statuses(mode: str) -> dict[str, str]:
        return {row.architecture: row.status for row in Registry([str(site.root)]).list(mode)}  # type: ignore[arg-type]

    assert statuses("run") == {"Fine": "ok", "Broken": "broken", "Hung": "broken"}
    assert sorted(asked) == ["Broken", "Fine", "Hung"]
    asked.clear()
    assert statuses("cached") == {"Fine": "ok", "Broken": "broken", "Hung": "ok"}
    statuses("run")
    assert asked == ["Hung"], "a probe that hung is asked again, the others are not"

    asked.clear()
    site.add("dependency", "0.1")
    statuses("run")
    assert sorted(asked) == ["Broken", "Hung"], "a failure may be mended by an installation"

    asked.clear()
    info.joinpath("RECORD").write_text("fine.py,sha256=other,3\n")
    assert Registry([str(site.root)]).inspect("Fine").architecture == "Fine"
    assert asked == ["Fine"]


def test_one_class_with_two_names_is_asked_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_probes(monkeypatch)
    site.add("two-names", models={"One": "two_names:X", "Two": "two_names:X"})
    infos = [row.info for row in Registry([str(site.root)]).list("run")]
    assert [info.architecture for info in infos if info is not None] == ["One", "Two"]
    assert Registry([str(site.root)]).inspect("One").architecture == "One"
    assert len(asked) == 1


def test_editing_the_source_of_an_editable_install_asks_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_probes(monkeypatch)
    info = site.model("fine", "Fine")
    info.joinpath("direct_url.json").write_text('{"dir_info": {"editable": true}}')
    for _ in range(2):
        Registry([str(site.root)]).inspect("Fine")
    assert asked == ["Fine"]
    os.utime(site.root / "fine.py", ns=(1, 1))
    Registry([str(site.root)]).inspect("Fine")
    assert asked == ["Fine", "Fine"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"[" * 100_000, b"\xff\xfe"])
def test_a_damaged_entry_counts_as_absent(site: Site, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    asked = count_probes(monkeypatch)
    site.model("fine", "Fine")
    Registry([str(site.root)]).inspect("Fine")
    [entry] = (probe_cache.cache_directory() / "probe").iterdir()
    entry.write_bytes(damage)
    assert Registry([str(site.root)]).inspect("Fine").architecture == "Fine"
    assert asked == ["Fine", "Fine"]
    Registry([str(site.root)]).inspect("Fine")
    assert asked == ["Fine", "Fine"]


def test_an_unwritable_cache_is_one_warning(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count_probes(monkeypatch)
    for name in ("one", "two"):
        site.model(name, name.title())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "file" / "below"))
    registry = Registry([str(site.root)])
    with caplog.at_level(logging.WARNING):
        assert [registry.inspect(name).architecture for name in ("One", "Two")] == ["One", "Two"]
    assert len(caplog.records) == 1
    assert "inspections are not kept" in caplog.text


def test_bad_neighbours_change_nothing_but_their_own_rows(
    two_sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, beside = two_sites
    alone.model("good", "Good")
    before = Registry([str(alone.root)], probe_timeout_s=3.0)
    beside.add("crash", models={"Crash": "crash:X"}, source="import os; os._exit(3)")
    beside.add("hang", models={"Hang": "hang:X"}, source="import time; time.sleep(60)")
    beside.model("twin-a", "Twin")
    beside.model("twin-b", "Twin")
    for place in two_sites:
        monkeypatch.syspath_prepend(str(place.root))
    [expected] = before.list("run")
    roots = [str(place.root) for place in two_sites]
    both = Registry(roots, cache_directory=beside.root / "cache", probe_timeout_s=3.0)
    after = {(row.architecture, row.distribution): row for row in both.list("run")}
    assert after["Good", "good"] == expected
    assert expected.status == "ok"
    assert expected.info is not None
    assert after["Crash", "crash"].cause == "crashed during import (exit 3) (from dist crash 1.0)"
    assert after["Hang", "hang"].cause.startswith("hung during import")
    assert after["Twin", "twin-a"].status == after["Twin", "twin-b"].status == "duplicate"
