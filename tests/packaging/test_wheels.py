"""Both distributions build, carry what they need, and work when installed from the wheel.

One build a session: every package is copied out of the repository first, so that what builds is the folder alone,
and `python -m build` makes the sdist and, from that sdist, the wheel.
"""

from __future__ import annotations

import email
import json
import sys
import tarfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from workshop import CLEAN, ROOT, Built, build, installed, run


def files_in_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Built]) -> None:
    for one in built.values():
        sources = {
            path.relative_to(one.package.parent).as_posix(): path.read_bytes()
            for path in one.package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert f"{one.package.name}/py.typed" in sources
        files = files_in_wheel(one.wheel)
        native = {name for name in files if (one.folder / "native").is_dir() and Path(name).suffix in (".so", ".dylib")}
        ours = {name: data for name, data in files.items() if ".dist-info/" not in name and name not in native}
        assert ours == sources
        assert bool(native) == (one.folder / "native").is_dir()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_core_carries_its_data_files(built: dict[str, Built]) -> None:
    data = {name: text for name, text in files_in_wheel(built["bestiary"].wheel).items() if name.endswith(".json")}
    assert {path.name for path in ROOT.glob("core/src/bestiary/api/data/*.json")} <= {Path(name).name for name in data}
    for text in data.values():
        json.loads(text)


def test_metadata_says_what_the_project_says(built: dict[str, Built]) -> None:
    for name, one in built.items():
        files = files_in_wheel(one.wheel)
        (text,) = (data for path, data in files.items() if path.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(text)
        assert (metadata["Name"], metadata["Version"]) == (name, one.project["version"])
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert set(one.project["dependencies"]) <= {required(line) for line in metadata.get_all("Requires-Dist")}
        assert len(metadata.get_payload()) > 500  # the README


def required(line: str) -> str:
    """`numpy<3,>=2` and `numpy>=2,<3` are the same requirement; projects here write the lower bound first."""
    name_and_first, *others = line.split(",")
    if not others:
        return line
    name = name_and_first.rstrip("<>=.0123456789")
    return name + ",".join(sorted([name_and_first.removeprefix(name), *others], reverse=True))


def test_the_sdist_gives_the_same_wheel_as_the_repository(built: dict[str, Built], tmp_path: Path) -> None:
    """(What native code is compiled from is compared instead of compiling it again.)"""
    for name, one in built.items():
        build(one.folder, tmp_path / name, "--wheel", SKBUILD_WHEEL_CMAKE="false")
        (direct,) = (tmp_path / name).glob("*.whl")
        sources = native_sources(one.folder)
        assert sources.items() <= files_in_sdist(one.sdist).items()
        assert without_native(direct, bool(sources)) == without_native(one.wheel, bool(sources))


def native_sources(folder: Path) -> dict[str, bytes]:
    """All that the native code of a package is compiled from; empty where it has none."""
    if not (folder / "native").is_dir():
        return {}
    paths = [folder / "CMakeLists.txt", folder / "pyproject.toml", *(folder / "native").rglob("*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def files_in_sdist(sdist: Path) -> dict[str, bytes]:
    with tarfile.open(sdist) as archive:
        found = {Path(*Path(one.name).parts[1:]).as_posix(): archive.extractfile(one) for one in archive}
        return {name: file.read() for name, file in found.items() if file is not None}


def without_native(wheel: Path, has_native: bool) -> dict[str, bytes]:
    """A wheel's files but for libraries, and for what lists them and says what machine they are for."""
    left_out = (".so", ".dylib", ".dist-info/RECORD", ".dist-info/WHEEL") if has_native else ()
    return {name: data for name, data in files_in_wheel(wheel).items() if not name.endswith(left_out)}


def test_the_sdist_holds_the_tests_and_nothing_private(built: dict[str, Built]) -> None:
    for one in built.values():
        with tarfile.open(one.sdist) as archive:
            names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
        allowed = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore", "CMakeLists.txt"}
        assert {name for name in names if name.split("/")[0] not in ("src", "tests", "native")} <= allowed
        tests = {path.relative_to(one.folder).as_posix() for path in one.folder.glob("tests/**/*.py")}
        assert tests <= names
        assert not any("__pycache__" in name for name in names)


def test_the_index_would_accept_them(built: dict[str, Built]) -> None:
    archives = [path for one in built.values() for path in (one.sdist, one.wheel)]
    run(sys.executable, "-m", "twine", "check", "--strict", *archives)


ARCHITECTURES = """
import bestiary, importlib_metadata, sys
assert "site-packages/bestiary" in bestiary.__file__, bestiary.__file__
print(bestiary.__version__, sorted(entry.name for entry in importlib_metadata.entry_points(group="vllm_models")))
assert "torch" not in sys.modules
"""


def test_core_alone_knows_no_architecture_and_a_plugin_adds_its_own(
    built: dict[str, Built], empty_environment: Path
) -> None:
    core = built["bestiary"]
    first, *others = [one for one in built.values() if one is not core]
    known: set[str] = set()
    installed(empty_environment, core.wheel)
    assert run(empty_environment, "-c", ARCHITECTURES, env=CLEAN).split() == [core.project["version"], "[]"]
    assert (empty_environment.parent / "bestiary").exists()
    for more in ([first], others):
        installed(empty_environment, *(one.wheel for one in more))
        known = known.union(*(one.project.get("entry-points", {}).get("vllm_models", {}) for one in more))
        listed = run(empty_environment, "-c", ARCHITECTURES, env=CLEAN).split(maxsplit=1)[1].strip()
        assert listed == str(sorted(known))
    assert "LlamaForCausalLM" in known
