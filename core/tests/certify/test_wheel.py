"""Wheels of anybody's making: what is laid out is what an installer would, and nothing is written outside."""

from __future__ import annotations

import base64
import hashlib
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from bestiary import __version__
from bestiary.api import record
from bestiary.api.errors import BadTarget
from bestiary.testing.certify import wheel
from bestiary.testing.certify.target import resolve

INFO = "tiny_plugin-1.0.dist-info"
FILES = {
    "tiny_plugin.py": "class TinyForCausalLM: ...\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/entry_points.txt": "[vllm_models]\nTinyForCausalLM = tiny_plugin:TinyForCausalLM\n",
}


def row(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text)}\n"


def forge(
    folder: Path, files: Mapping[str, str] = FILES, *, name: str = "tiny_plugin-1.0-py3-none-any.whl", rows: str = ""
) -> Path:
    """A wheel of `files`; rows: RECORD's, by default the right ones."""
    path = folder / name
    stated = rows or "".join(row(*each) for each in files.items()) + f"{INFO}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)
        archive.writestr(f"{INFO}/RECORD", stated)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "overlay"
    folder.mkdir(parents=True)
    return folder


def test_a_wheel_is_laid_out_as_installed(tmp_path: Path, target: Path) -> None:
    found = wheel.unpack(forge(tmp_path), target)
    assert (found.name, found.version, found.root) == ("tiny-plugin", "1.0", str(target))
    assert [entry.name for entry in found.group("vllm_models")] == ["TinyForCausalLM"]
    assert (target / "tiny_plugin.py").read_text() == FILES["tiny_plugin.py"]


def test_the_digest_outlives_what_an_installer_adds(tmp_path: Path, target: Path) -> None:
    found = wheel.unpack(forge(tmp_path), target)
    before = record.content_digest(found)
    listing = target / INFO / "RECORD"
    listing.write_text(
        listing.read_text()
        + row(f"{INFO}/INSTALLER", "pip\n")
        + row("../../bin/tiny", "#!python")
        + "__pycache__/tiny_plugin.cpython-311.pyc,,\n"
    )
    assert before is not None and record.content_digest(found) == before
    listing.write_text(listing.read_text().replace("tiny_plugin.py,sha256=", "tiny_plugin.py,sha256=x"))
    assert record.content_digest(found) != before


def test_a_data_folder_is_merged(tmp_path: Path, target: Path) -> None:
    files = dict(FILES)
    files["tiny_plugin-1.0.data/purelib/tiny_plugin.py"] = files.pop("tiny_plugin.py")
    files["tiny_plugin-1.0.data/scripts/tiny"] = "#!python"
    found = wheel.unpack(forge(tmp_path, files), target)
    assert (target / "tiny_plugin.py").read_text() == FILES["tiny_plugin.py"]
    plain = wheel.unpack(forge(tmp_path), _folder(tmp_path / "plain"))
    assert record.content_digest(found) == record.content_digest(plain)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_what_the_environment_lacks_is_said_before_anything_runs(tmp_path: Path, target: Path) -> None:
    wanted = "Requires-Dist: nothing-like-this>=2\nRequires-Dist: bestiary>=99\nRequires-Dist: pluggy\n"
    metadata = FILES[f"{INFO}/METADATA"] + wanted
    api = FILES[f"{INFO}/entry_points.txt"] + "[bestiary_api]\n1.0 = tiny_plugin\n"
    path = forge(tmp_path, FILES | {f"{INFO}/METADATA": metadata, f"{INFO}/entry_points.txt": api})
    with pytest.raises(BadTarget, match="needs what this environment does not have") as caught:
        resolve(str(path), target, timeout_s=60, say=lambda text: None)
    assert caught.value.details == ("nothing-like-this>=2 (not installed)", f"bestiary>=99 ({__version__})")
    assert caught.value.fix == "pip install 'nothing-like-this>=2' 'bestiary>=99'"


@pytest.mark.parametrize(
    "name", ["../escaped.py", "/escaped.py", "a/../../escaped.py", "a\\..\\escaped.py", "C:/escaped.py", "a\nb.py"]
)
def test_a_path_that_leads_out_is_refused_and_nothing_is_written(tmp_path: Path, target: Path, name: str) -> None:
    with pytest.raises(BadTarget, match="leads out"):
        wheel.unpack(forge(tmp_path, FILES | {name: "evil"}), target)
    assert list(target.rglob("*")) == [] and not list(tmp_path.rglob("escaped*"))


def test_a_link_is_refused(tmp_path: Path, target: Path) -> None:
    path = forge(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("link.py")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BadTarget, match="no regular file"):
        wheel.unpack(path, target)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_stands_twice_is_refused(tmp_path: Path, target: Path) -> None:
    path = forge(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny_plugin.py", "another")
    with pytest.raises(BadTarget, match="stands twice"):
        wheel.unpack(path, target)


def test_sizes_are_counted_and_not_believed(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "MAX_BYTES", 1000)
    with pytest.raises(BadTarget, match="too large"):
        wheel.unpack(forge(tmp_path, FILES | {"big.py": "#" * 2000}), target)
    monkeypatch.setattr(wheel, "MAX_FILES", 2)
    with pytest.raises(BadTarget, match="5 files"):
        wheel.unpack(forge(tmp_path), _folder(tmp_path / "second"))


def without(*names: str) -> dict[str, str]:
    return {name: text for name, text in FILES.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "options", "complaint"),
    [
        (FILES, {"name": "nonsense.whl"}, "not a wheel's"),
        (FILES, {"name": "tiny_plugin-1.0-cp27-cp27m-win32.whl"}, "another Python or platform"),
        (FILES, {"name": "other-1.0-py3-none-any.whl"}, "does not fit its name"),
        (without(f"{INFO}/METADATA"), {}, "METADATA is missing"),
        (without(f"{INFO}/entry_points.txt"), {}, "offers nothing"),
        (FILES, {"rows": row("tiny_plugin.py", "something else")}, "not that of its files"),
        (FILES, {"rows": row("gone.py", "x")}, "not that of its files"),
        (FILES | {"other-2.dist-info/METADATA": ""}, {}, "does not fit its name"),
    ],
)
def test_what_is_no_plugins_wheel_is_refused(
    tmp_path: Path, target: Path, files: dict[str, str], options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(BadTarget, match=complaint) as caught:
        wheel.unpack(forge(tmp_path, files, **options), target)
    assert caught.value.exit_code == 2


def test_what_is_no_archive_is_refused(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "tiny_plugin-1.0-py3-none-any.whl"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(BadTarget, match="cannot be unpacked"):
        wheel.unpack(path, target)
    shutil.copy(forge(_folder(tmp_path / "made")), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadTarget, match="cannot be unpacked"):
        wheel.unpack(path, target)


def test_a_folder_that_does_not_build_says_what_pip_said(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "tiny-plugin"\n'
    )
    with pytest.raises(BadTarget, match="no wheel can be built") as caught:
        wheel.build(tmp_path, _folder(tmp_path / "out"), timeout_s=60, say=lambda text: None)
    assert any("version" in line for line in caught.value.details)


def test_what_the_build_lacks_is_said_before_it_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["no-such-backend-of-ours>=3", "pip>=1"]\n')
    assert wheel._missing_build_requirements(tmp_path) == ["no-such-backend-of-ours>=3"]
