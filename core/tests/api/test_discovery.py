"""Discovery reads metadata only, agrees with importlib_metadata, and reports what is malformed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import importlib_metadata
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api import distributions
from bestiary.api.discovery import scan
from bestiary.api.distributions import normalise
from bestiary.api.metadata import MalformedMetadata, parse_entry_points
from bestiary.testing.fake_site import Site


def test_a_plugin_is_found_with_name_version_and_places(site: Site) -> None:
    info = site.model("My.Fancy_plugin", "Fancy", "1.2.3", module="fancy")
    found = scan([str(site.root)])
    [plugin] = found.plugins
    assert (plugin.name, plugin.version, plugin.path, plugin.root) == (
        "my-fancy-plugin", "1.2.3", str(info), str(site.root),
    )  # fmt: skip
    assert plugin.api_versions == ("1.0",)
    assert [(entry.name, entry.value) for entry in plugin.group(distributions.MODELS)] == [("Fancy", "fancy:Fancy")]
    assert "fancy" not in sys.modules


def test_the_first_of_two_distributions_with_one_name_wins(two_sites: tuple[Site, Site]) -> None:
    one, two = two_sites
    one.model("same", "Same", "1.0")
    two.model("same", "Same", "2.0")
    roots = [str(one.root), str(two.root)]
    assert [str(plugin) for plugin in scan(roots).plugins] == ["same 1.0"]
    assert [str(plugin) for plugin in scan(roots[::-1]).plugins] == ["same 2.0"]
    assert [str(plugin) for plugin in scan([*roots, roots[0]]).plugins] == ["same 1.0"]


def test_of_two_versions_in_one_folder_the_later_counts_and_the_other_is_reported(site: Site) -> None:
    site.model("same", "Same", "9.0")
    site.model("same", "Same", "10.0")
    found = scan([str(site.root)])
    assert [str(plugin) for plugin in found.plugins] == ["same 10.0"]
    assert [row.reason for row in found.malformed] == ["left over beside same 10.0"]


@pytest.mark.parametrize(
    ("entry_points", "reason"),
    [
        ("[vllm_models]\nNoValue\n", "line 2 is no entry"),
        ("[vllm_models]\nEmpty =\n", "line 2 is no entry"),
        ("A = b:C\n[vllm_models]\n", "line 1 is no entry"),
        ("[vllm_models]\nA = b:C\nA = b:D\n", "gives 'A' a second time"),
        (b"[vllm_models]\nA = b:C\xff\n", "not UTF-8"),
        ("[vllm_models]\n" + "#" * (1 << 20), "longer than"),
    ],
)
def test_invalid_entry_points_are_skipped_with_name_and_reason(
    site: Site, entry_points: str | bytes, reason: str
) -> None:
    site.add("bad-one", entry_points=entry_points)
    site.model("good", "Good")
    found = scan([str(site.root)])
    assert [plugin.name for plugin in found.plugins] == ["good"]
    [row] = found.malformed
    assert "bad_one" in row.name
    assert reason in row.reason


@pytest.mark.parametrize("metadata", ["", "\0\1\2 garbage", "Name: other\nVersion: 1.0\n", "Name: bad\n"])
def test_garbage_metadata_is_skipped_with_name(site: Site, metadata: str) -> None:
    site.model("bad", "Bad", metadata=metadata)
    site.model("good", "Good")
    found = scan([str(site.root)])
    assert [plugin.name for plugin in found.plugins] == ["good"]
    assert [row.name for row in found.malformed] == ["bad"]


def test_a_misspelt_group_is_said_of_whoever_states_an_api_version(site: Site) -> None:
    site.add("typo", entry_points="[vlm_models]\nA = typo:A\n[bestiary_api]\n1.0 = typo\n")
    site.add("spaced", entry_points="[ vllm_models ]\nB = spaced:B\n[bestiary_api]\n1.0 = spaced\n")
    found = scan([str(site.root)])
    assert [row.name for row in found.malformed] == ["typo"]
    assert "group's name misspelt" in found.malformed[0].reason
    assert [each.name for each in found.plugins] == ["spaced"]


def test_a_fifo_does_not_hold_us_up(site: Site) -> None:
    info = site.add("odd")
    info.joinpath("entry_points.txt").unlink()
    os.mkfifo(info / "entry_points.txt")
    assert "not a regular file" in scan([str(site.root)]).malformed[0].reason


def test_bystanders_metadata_is_never_opened(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.model("plugin", "Arch")
    for number in range(50):
        site.add(f"bystander-{number}", entry_points="[console_scripts]\nx = y:z\n")
    opened: list[str] = []
    real = os.open

    def note(path: str, *rest: int) -> int:
        opened.append(os.path.basename(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", note)
    assert len(scan([str(site.root)]).versions) == 51
    assert opened.count("METADATA") == 1
    assert set(opened) == {"METADATA", "entry_points.txt"}


def test_500_plugins_are_listed_without_importing_any(site: Site) -> None:
    for number in range(500):
        site.model(f"plugin-{number}", f"Arch{number}")
    program = (
        "import sys\n"
        "from bestiary.api.registry import Registry\n"
        f"rows = Registry([{str(site.root)!r}]).list()\n"
        "print(f'{len(rows)} rows')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pluggy', 'importlib_metadata'} & set(sys.modules)\n"
        "print(sorted(heavy), sum(name.startswith('plugin_') for name in sys.modules))\n"
    )
    path = os.pathsep.join(filter(None, [str(site.root), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["500 rows", "[] 0"]


def test_what_is_installed_here_equals_importlib_metadata() -> None:
    theirs = {
        (entry.group, entry.name, entry.value, normalise(entry.dist.name))
        for group in distributions.GROUPS
        for entry in importlib_metadata.entry_points(group=group)
    }
    found = scan()
    ours = {
        (entry.group, entry.name, entry.value, dist.name)
        for group in distributions.GROUPS
        for entry, dist in found.providers(group)
    }
    assert ours == theirs
    assert {normalise(dist.name): dist.version for dist in importlib_metadata.distributions()} == found.versions


def test_egg_info_and_archives(tmp_path: Path) -> None:
    develop = tmp_path / "develop" / "old_style.egg-info"
    develop.mkdir(parents=True)
    develop.joinpath("PKG-INFO").write_text("Metadata-Version: 1.0\nName: old-style\nVersion: 0.3\n")
    develop.joinpath("entry_points.txt").write_text("[vllm_models]\nOld = old:Old\n")
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("packed-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed\nVersion: 2.0\n")
        file.writestr("packed-2.0.dist-info/entry_points.txt", "[vllm_models]\nPacked = packed:Packed\n")
    found = scan([str(develop.parent), str(archive), str(tmp_path / "absent")])
    assert [str(plugin) for plugin in found.plugins] == ["old-style 0.3", "packed 2.0"]
    assert found.malformed == ()


def test_the_remains_of_an_uninstallation_hide_nothing(two_sites: tuple[Site, Site]) -> None:
    one, two = two_sites
    one.root.joinpath("same-3.0.dist-info").mkdir()
    two.model("same", "Same", "1.0")
    found = scan([str(one.root), str(two.root)])
    assert [str(plugin) for plugin in found.plugins] == ["same 1.0"]
    assert [row.reason for row in found.malformed] == ["METADATA is missing; same 1.0 counts"]
    two.root.joinpath("same-2.0.dist-info").mkdir()
    assert [str(plugin) for plugin in scan([str(two.root)]).plugins] == ["same 1.0"]


word = st.text(st.characters(categories=["L", "N"], include_characters="_.-"), min_size=1, max_size=8)
line = st.one_of(
    st.tuples(word, word, word).map(lambda parts: f"{parts[0]} = {parts[1]}:{parts[2]}"),
    st.sampled_from(["[vllm_models]", "[bestiary_api]", "[other]", "", "# note", "  ", "[", "=", "a =", "= b", "[]"]),
    st.text(max_size=12),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(line, max_size=8).map("\n".join))
def test_any_text_parses_like_importlib_metadata_or_is_called_malformed(text: str) -> None:
    try:
        ours = parse_entry_points(text)
    except MalformedMetadata:
        return  # that nothing well-formed is refused, the next test shows
    theirs = [entry for entry in _theirs(text) if entry[0] in distributions.GROUPS]
    assert [(entry.group, entry.name, entry.value) for entry in ours] == list(dict.fromkeys(theirs))


entry_line = st.tuples(word, word, word).map(lambda parts: f"{parts[0]} = {parts[1]}:{parts[2]}")


@settings(max_examples=50, deadline=None)
@given(st.lists(entry_line, max_size=6, unique_by=lambda one: one.partition(" =")[0]))
def test_nothing_well_formed_is_called_malformed(lines: list[str]) -> None:
    text = "\n".join(["[other]", "x = y:z", "[vllm_models]", *lines])
    assert [f"{entry.name} = {entry.value}" for entry in parse_entry_points(text)] == lines


def _theirs(text: str) -> list[tuple[str, str, str]]:
    entries = importlib_metadata.EntryPoints._from_text_for(text, None)
    return [(entry.group, entry.name, entry.value) for entry in entries]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_change_only_their_own_row(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    site = Site(tmp_path_factory.mktemp("fuzz"))
    site.add("fuzzed", entry_points=b"[vllm_models]\n" + data)
    site.model("good", "Good")
    found = scan([str(site.root)])
    assert "good" in [plugin.name for plugin in found.plugins]
    assert {row.name for row in found.malformed} <= {"fuzzed-1.0", "fuzzed"}
