"""`resolve_source`: paths, short names and the hub, its cache made by hand and the network cut."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bestiary.api.errors import LoadError, UsageError
from bestiary.engine.loader import hub
from bestiary.engine.loader.source import ModelSource, resolve_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cut_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Names:
    """A locator as a hook provides it."""

    def __init__(self, **where: Path) -> None:
        self.where = where

    def locate(self, name: str) -> Path | None:
        return self.where.get(name)

    def names(self) -> Mapping[str, str]:
        return dict.fromkeys(self.where, "a model")


def hub_cache(folder: Path, repo: str, files: Mapping[str, bytes]) -> Path:
    """The hub's own layout: blobs by hash, a snapshot of links, a ref. Returns the snapshot."""
    root = folder / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    for number, (name, content) in enumerate(files.items()):
        blob = root / "blobs" / f"{number:040x}"
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def refused(model: Any, **options: Any) -> LoadError:
    begun = time.monotonic()
    with pytest.raises(LoadError) as caught:
        resolve_source(model, **options)
    assert time.monotonic() - begun < 10  # a second on an idle machine, the import of huggingface_hub included
    assert caught.value.field
    assert caught.value.limit
    assert caught.value.fix
    return caught.value


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    expected = ModelSource(
        kind="directory",
        root=tmp_path,
        weight_files=(tmp_path / "model.safetensors",),
        config_path=tmp_path / "config.json",
        name=str(tmp_path),
    )
    assert resolve_source(str(tmp_path)) == expected
    assert resolve_source(str(tmp_path / "config.json")).root == tmp_path


def test_a_gguf_file_and_its_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "m.Q4_0.gguf"
    file.write_bytes(b"GGUF")
    source = resolve_source(str(file))
    assert (source.kind, source.weight_files, source.config_path) == ("gguf", (file,), None)
    (tmp_path / "config.json").write_text("{}")
    assert resolve_source(str(file)).config_path == tmp_path / "config.json"
    assert resolve_source(str(tmp_path)).kind == "gguf"


def test_any_part_of_a_split_gguf_stands_for_all(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for part in parts:
        part.write_bytes(b"GGUF")
    for part in parts:
        assert resolve_source(str(part)).weight_files == tuple(parts)
    parts[1].unlink()
    error = refused(str(parts[0]))
    assert error.error_code == "MISSING_SHARD"
    assert error.details == ("m-00002-of-00003.gguf",)


def test_other_files_are_no_models(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"")
    with pytest.raises(LoadError, match="no model") as caught:
        resolve_source(str(file))
    assert caught.value.error_code == "NOT_A_MODEL"


def test_short_names_come_after_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "package"
    there.mkdir()
    locators = [Names(), Names(smollm2=there)]
    source = resolve_source("smollm2", locators=locators)
    assert (source.root, source.name) == (there, "smollm2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve_source("smollm2", locators=locators).root == Path("smollm2")


def test_a_name_that_is_nothing_brings_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "llama-tiny").mkdir()
    error = refused("smolm2", locators=[Names(smollm2=tmp_path, qwen=tmp_path)])
    assert error.error_code == "MODEL_NOT_FOUND"
    assert "did you mean smollm2?" in str(error)
    assert error.details == ("short names: qwen, smollm2",)
    error = refused(str(tmp_path / "lama-tiny"))
    assert f"did you mean {tmp_path / 'llama-tiny'}?" in error.message
    assert refused("./model.gguf").error_code == "MODEL_NOT_FOUND"
    assert refused("a/b/c").error_code == "MODEL_NOT_FOUND"
    assert refused("../etc/passwd").error_code == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("model", ["", "a\0b", "x" * 5000, None, 7, "a\nb"])
def test_names_that_are_none(model: Any) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_source(model)
    assert caught.value.field == "model"
    assert caught.value.limit


def test_revision_needs_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hub id") as caught:
        resolve_source(str(tmp_path), revision="main")
    assert caught.value.field == "revision"


def test_hub_model_from_the_cache(tmp_path: Path) -> None:
    snapshot = hub_cache(
        tmp_path, "owner/name", {"config.json": b"{}", "model.safetensors": b"x", "evil.py": b"", "x.bin": b""}
    )
    source = resolve_source("owner/name", download_dir=tmp_path)
    assert source.kind == "directory"
    assert source.root == snapshot
    assert source.weight_files == (snapshot / "model.safetensors",)
    assert source.config_path == snapshot / "config.json"
    assert resolve_source("owner/name", revision=COMMIT, download_dir=tmp_path).revision == COMMIT


def test_hub_shards_by_their_index(tmp_path: Path) -> None:
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    index = f'{{"weight_map": {{"a": "{first}", "b": "{second}"}}}}'.encode()
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        first: b"x",
        second: b"y",
        "consolidated.safetensors": b"",
    }
    snapshot = hub_cache(tmp_path, "owner/name", files)
    assert resolve_source("owner/name", download_dir=tmp_path).weight_files == (snapshot / first, snapshot / second)


def test_hub_gguf(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "owner/name", {"config.json": b"{}", "a.Q4_0.gguf": b"", "sub/b.gguf": b""})
    source = resolve_source("owner/name:a.Q4_0.gguf", download_dir=tmp_path)
    assert (source.kind, source.weight_files) == ("gguf", (snapshot / "a.Q4_0.gguf",))
    assert source.config_path == snapshot / "config.json"
    assert resolve_source("owner/name:sub/b.gguf", download_dir=tmp_path).weight_files == (snapshot / "sub" / "b.gguf",)
    assert refused("owner/name:absent.gguf", download_dir=tmp_path).error_code == "NOT_CACHED"


@pytest.mark.parametrize(
    "model", ["owner/name:../x.gguf", "owner/name:pytorch_model.bin", "owner/name:/x.gguf", "owner/name:a//b.gguf"]
)
def test_hub_files_that_may_not_be_named(model: str) -> None:
    with pytest.raises(UsageError, match="GGUF") as caught:
        resolve_source(model)
    assert caught.value.field == "model"


def test_only_what_is_needed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    snapshot = tmp_path / COMMIT
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    asked: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.append(options)
        if len(asked) == 2:
            (snapshot / "model.safetensors").write_bytes(b"")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    resolve_source("owner/name", revision="v1", download_dir=tmp_path)
    patterns = [pattern for options in asked for pattern in options["allow_patterns"]]
    assert not [pattern for pattern in patterns if pattern.endswith((".py", ".bin", ".pt", "*"))]
    assert [options["revision"] for options in asked] == ["v1", COMMIT]
    assert not any(options["local_files_only"] for options in asked)
    there = ["config.json", "a.tiktoken", "model.safetensors", "1_Pooling/config.json", "2_Dense/config.json",
             "onnx/config.json", "onnx/a.tiktoken", "onnx/model.safetensors"]  # fmt: skip
    chosen = [{name: options[name] for name in ("allow_patterns", "ignore_patterns")} for options in asked]
    chosen.append({"allow_patterns": ["*.safetensors"], "ignore_patterns": hub.kept_at_the_top(["*.safetensors"])})
    fetched = {name for each in chosen for name in filter_repo_objects(there, **each)}
    assert fetched == {*there[:4]}
    asked.clear()
    resolve_source("owner/name", weights=False)
    assert len(asked) == 1
    assert not any("safetensors" in pattern and "index" not in pattern for pattern in asked[0]["allow_patterns"])


def test_offline_and_no_network_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("owner/name", download_dir=tmp_path)
    assert error.error_code == "NOT_CACHED"
    assert "HF_HUB_OFFLINE" in str(error)
    hub_cache(tmp_path, "owner/half", {"config.json": b"{}"})
    assert refused("owner/half", download_dir=tmp_path).error_code == "NOT_CACHED"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    error = refused("owner/name", download_dir=tmp_path)
    assert error.error_code == "NO_NETWORK"
    assert "network" in (error.fix or "")


def test_what_the_hub_says_becomes_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    made = {
        "GATED": errors.GatedRepoError,
        "MODEL_NOT_FOUND": errors.RepositoryNotFoundError,
        "REVISION_NOT_FOUND": errors.RevisionNotFoundError,
        "HUB_FAILED": errors.HfHubHTTPError,
    }
    for code, kind in made.items():
        cause = kind.__new__(kind)
        Exception.__init__(cause, "no")

        def fail(repo: str, cause: Exception = cause, **options: Any) -> str:
            raise cause

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        error = refused("owner/name", revision="v9")
        assert error.error_code == code
        assert error.__cause__ is cause
        assert "owner/name" in str(error)


def test_patterns_of_split_gguf() -> None:
    assert hub._gguf_patterns("Q4/m-00001-of-00004.gguf") == ("Q4/m-?????-of-00004.gguf",)
    assert hub._gguf_patterns("m[1]*.gguf") == ("m[[]1][*].gguf",)


def test_hf_config_path(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    model.mkdir()
    other.mkdir()
    (model / "config.json").write_text("{}")
    (other / "config.json").write_text("{}")
    for named in (other, other / "config.json"):
        assert resolve_source(str(model), hf_config_path=str(named)).config_path == other / "config.json"
    snapshot = hub_cache(tmp_path, "owner/name", {"config.json": b"{}"})
    source = resolve_source(str(model), hf_config_path="owner/name", download_dir=tmp_path)
    assert source.config_path == snapshot / "config.json"
    assert source.root == model
    with pytest.raises(LoadError) as caught:
        resolve_source(str(model), hf_config_path=str(tmp_path / "absent"))
    assert caught.value.error_code == "CONFIG_NOT_FOUND"
    assert caught.value.field == "hf_config_path"
