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
    for name, one in built.items():
        build(one.folder, tmp_path / name, "--wheel")
        (direct,) = (tmp_path / name).glob("*.whl")
        assert files_in_wheel(direct) == files_in_wheel(one.wheel)


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
