"""Safetensors headers as hostile data (rows M01–M06, M09), shards and their index; the library is the oracle."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bestiary.api.errors import CorruptWeights, LoadError, PickleRefused, WeightsMismatch
from bestiary.engine.loader import safetensors_reader
from bestiary.engine.loader.safetensors_reader import MAX_HEADER_BYTES, iterate_safetensors, read_header, tensor_index
from bestiary.engine.loader.weight_files import INDEX, check_index, find_weights, refuse_without_weights

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
    "f8": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
}


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def corrupt(path: Path) -> CorruptWeights:
    with pytest.raises(CorruptWeights) as caught:
        read_header(path)
    assert caught.value.error_code == "CORRUPT_WEIGHTS"
    assert str(path) in (caught.value.field or "")
    assert path.name in str(caught.value)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_header_and_tensors_equal_the_librarys(file: Path) -> None:
    save_file(TENSORS, file, metadata={"format": "pt"})
    expected = load_file(file)
    index = tensor_index([file])
    assert index.keys() == expected.keys()
    for name, tensor in iterate_safetensors([file]):
        assert index[name].shape == tuple(tensor.shape)
        assert index[name].nbytes == tensor.nbytes
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor.view(-1).view(torch.uint8), expected[name].view(-1).view(torch.uint8))
    assert index["a"].dtype == "BF16"
    assert [name for name, _ in iterate_safetensors([file])] == list(index)
    assert [info.offset for info in index.values()] == sorted(info.offset for info in index.values())


def test_a_file_read_in_several_mappings_is_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(TENSORS, file)
    whole = dict(iterate_safetensors([file]))
    monkeypatch.setattr(safetensors_reader, "_MAPPED", 1)
    apart = dict(iterate_safetensors([file]))
    assert list(apart) == list(whole)
    assert all(torch.equal(apart[name].float(), whole[name].float()) for name in whole)
    assert len({tensor.untyped_storage().data_ptr() for tensor in apart.values()}) > 1


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 2**40, 200 * 10**6, 1000])
def test_m02_header_length(file: Path, length: int) -> None:
    error = corrupt(written(file, {"a": entry("U8", [1], 0, 1)}, b"\0", length=length))
    assert error.value == length
    assert "byte 0" in (error.field or "")


def test_m02_header_beyond_the_limit_though_the_file_holds_it(file: Path) -> None:
    written(file, b"{", length=MAX_HEADER_BYTES + 1)
    with file.open("r+b") as opened:
        opened.truncate(MAX_HEADER_BYTES + 100)
    assert str(MAX_HEADER_BYTES) in str(corrupt(file))


@pytest.mark.parametrize("size", range(10))
def test_m02_shorter_than_any_header(file: Path, size: int) -> None:
    file.write_bytes(b"\x02" + b"\0" * 9)
    with file.open("r+b") as opened:
        opened.truncate(size)
    assert corrupt(file).value == size


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([(0, 4), (2, 6)], "overlaps"),
        ([(0, 4), (0, 4)], "overlaps"),
        ([(0, 4), (6, 8)], "gap"),
        ([(1, 4)], "gap"),
        ([(0, 4), (4, 20)], "past the end"),
        ([(0, 2**62)], "past the end"),
        ([(0, 4)], "after the last"),
        ([], "after the last"),
    ],
)
def test_m03_m04_layout(file: Path, spans: list[tuple[int, int]], words: str) -> None:
    header = {f"t{i}": entry("U8", [end - begin], begin, end) for i, (begin, end) in enumerate(spans)}
    error = corrupt(written(file, header, bytes(8)))
    assert words in str(error)
    assert error.limit


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (entry("U8", [4], 4, 0), "t.data_offsets"),
        (entry("U8", [4], -4, 0), "t.data_offsets"),
        ({"dtype": "U8", "shape": [4], "data_offsets": [0]}, "t.data_offsets"),
        ({"dtype": "U8", "shape": [4], "data_offsets": [0, 4.0]}, "t.data_offsets"),
        (entry("F32", [4], 0, 4), "t.data_offsets"),
        (entry("F32", [2**40, 2**40], 0, 4), "t.data_offsets"),
        (entry("F4", [7], 0, 3), "t.data_offsets"),
        (entry("U8", [2**32, 2**32 + 1], 0, 4), "t.data_offsets"),
        (entry("U8", [-4], 0, 4), "t.shape"),
        (entry("U8", [-2, -2], 0, 4), "t.shape"),
        (entry("U8", [2**64], 0, 4), "t.shape"),
        (entry("U8", [True, 4], 0, 4), "t.shape"),
        (entry("U8", ["4"], 0, 4), "t.shape"),
        (entry("U8", [1] * 17, 0, 4), "t.shape"),
        (entry("Q9", [4], 0, 4), "t.dtype"),
        ({**entry("U8", [4], 0, 4), "dtype": None}, "t.dtype"),
        ({**entry("U8", [4], 0, 4), "extra": 1}, "t"),
        ({"dtype": "U8"}, "t"),
        ([], "t"),
        (None, "t"),
    ],
)
def test_m05_entries(file: Path, bad: object, field: str) -> None:
    error = corrupt(written(file, {"t": bad}, bytes(4)))
    assert error.field == f"{file}: {field}"
    assert error.limit


def test_m06_duplicate_name_is_refused_where_the_library_accepts_it(file: Path) -> None:
    one, two = (json.dumps(entry("U8", [4], 0, 4)), json.dumps(entry("U8", [2, 2], 0, 4)))
    written(file, f'{{"t": {one}, "t": {two}}}'.encode(), bytes(4))
    assert load_file(file)["t"].shape == (2, 2)
    assert corrupt(file).limit == "each name once in an object"


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b"nul", b'{"a": NaN}', b'{"__metadata__": 3}', b'{"__metadata__": {"a": 1}}', b"{\xff}", b'{"":1}'],
)
def test_headers_that_are_no_headers(file: Path, header: bytes) -> None:
    corrupt(written(file, header))


def test_only_regular_files(tmp_path: Path) -> None:
    directory = tmp_path / "model.safetensors"
    directory.mkdir()
    assert corrupt(directory).limit == "a regular file"
    assert "cannot be read" in str(corrupt(tmp_path / "absent.safetensors"))


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sentinel,))


def test_m01_pickles_under_a_safetensors_name(file: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    for protocol in (2, 4, 5):
        file.write_bytes(pickle.dumps({"a": Bomb(sentinel), "pad": bytes(600)}, protocol=protocol))
        assert_pickle_refused(file, "pickle")
    torch.save({"a": torch.ones(2)}, file)
    assert_pickle_refused(file, "zip archive")
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    assert_pickle_refused(file, "pickle")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb(sentinel)))
    assert_pickle_refused(file, "zip archive")
    file.write_bytes(bytes(257) + b"ustar" + bytes(300))
    assert_pickle_refused(file, "tar archive")
    assert not sentinel.exists()


def assert_pickle_refused(file: Path, kind: str) -> None:
    with pytest.raises(PickleRefused, match=kind) as caught:
        read_header(file)
    assert caught.value.error_code == "PICKLE_REFUSED"
    assert "save_file" in (caught.value.fix or "")


def test_m01_directories_that_hold_only_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "sentinel")))
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert find_weights(tmp_path) == ()
    error = refuse_without_weights(tmp_path)
    assert type(error) is PickleRefused
    assert error.details == ("pytorch_model.bin",)
    assert not (tmp_path / "sentinel").exists()
    (tmp_path / "pytorch_model.bin").unlink()
    assert refuse_without_weights(tmp_path).error_code == "NO_WEIGHTS"


def test_a_header_of_640_bytes_looks_like_a_pickle_and_is_none(file: Path) -> None:
    header = json.dumps({"t": entry("U8", [4], 0, 4)}).encode()
    written(file, header + b" " * (0x0280 - len(header)), bytes(4))
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(file)) == ["t"]


def test_a_gguf_file_under_a_safetensors_name(file: Path) -> None:
    file.write_bytes(b"GGUF" + bytes(60))
    assert "model.gguf" in (corrupt(file).fix or "")


HEADER_SIZE = 300


FLIPS = st.lists(st.tuples(st.integers(0, HEADER_SIZE), st.integers(0, 255)), min_size=1, max_size=4)
FEW, MANY = (
    settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    for count in (120, 2_000)
)


@FEW
@given(FLIPS, st.integers(0, 400))
def test_m09_header_flips_and_truncation(file: Path, flips: list[tuple[int, int]], cut: int) -> None:
    check_damaged(file, flips, cut)


@pytest.mark.full
@MANY
@given(FLIPS, st.integers(0, 400))
def test_m09_many_header_flips(file: Path, flips: list[tuple[int, int]], cut: int) -> None:
    check_damaged(file, flips, cut)


def check_damaged(file: Path, flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever we accept, the library accepts and reads alike."""
    save_file(TENSORS, file)
    data = bytearray(file.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    file.write_bytes(data[: len(data) - cut] if cut < 40 else data)
    try:
        index = tensor_index([file])
    except (CorruptWeights, PickleRefused):
        return
    loaded = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    assert loaded == {name: info.shape for name, info in index.items()}


def shards(directory: Path, layout: dict[str, list[str]], weight_map: dict[str, str] | None = None) -> Path:
    for name, tensors in layout.items():
        save_file({tensor: torch.full((2,), float(i)) for i, tensor in enumerate(tensors)}, directory / name)
    if weight_map is None:
        weight_map = {tensor: name for name, tensors in layout.items() for tensor in tensors}
    index = directory / INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


LAYOUT = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}


def test_shards_and_their_index(tmp_path: Path) -> None:
    index = shards(tmp_path, LAYOUT)
    files = find_weights(tmp_path)
    assert [file.name for file in files] == list(LAYOUT)
    assert sorted(check_index(index, files)) == ["a", "b", "c"]
    assert [name for name, _ in iterate_safetensors(files)] == ["a", "b", "c"]


def test_missing_shard(tmp_path: Path) -> None:
    index = shards(tmp_path, LAYOUT)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsMismatch) as caught:
        check_index(index, find_weights(tmp_path))
    assert caught.value.error_code == "MISSING_SHARD"
    assert caught.value.details == ("model-00002-of-00002.safetensors",)
    index.unlink()
    with pytest.raises(WeightsMismatch) as caught:
        find_weights(tmp_path)
    assert caught.value.error_code == "MISSING_SHARD"
    assert caught.value.details == ("model-00002-of-00002.safetensors",)


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    first, second = LAYOUT
    index = shards(tmp_path, LAYOUT, {"a": first, "b": second, "x": second})
    with pytest.raises(WeightsMismatch) as caught:
        check_index(index, find_weights(tmp_path))
    assert caught.value.error_code == "WEIGHTS_MISMATCH"
    assert set(caught.value.details) == {
        f"b: in {first}, the index says {second}",
        f"x: not in {second}",
        "c: not in the index",
    }


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    shards(
        tmp_path, {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["a", "b"]}
    ).unlink()
    with pytest.raises(CorruptWeights, match="in two files") as caught:
        tensor_index(find_weights(tmp_path))
    assert (caught.value.field or "").endswith(": a")


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/a.safetensors",
        "x/a.safetensors",
        "..\\a.safetensors",
        "c:a.safetensors",
        "a.bin",
        "",
        "..",
        7,
        None,
    ],
)
def test_index_names_that_leave_the_directory(tmp_path: Path, name: Any) -> None:
    shards(tmp_path, {}, {"a": name})
    with pytest.raises(CorruptWeights) as caught:
        find_weights(tmp_path)
    assert "weight_map.a" in (caught.value.field or "")
    assert "plain .safetensors file name" in str(caught.value.limit)


def test_which_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    assert [file.name for file in find_weights(tmp_path)] == ["one.safetensors"]
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(LoadError, match="no index") as caught:
        find_weights(tmp_path)
    assert caught.value.error_code == "AMBIGUOUS_WEIGHTS"
    assert caught.value.details == ("one.safetensors", "two.safetensors")
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert [file.name for file in find_weights(tmp_path)] == ["model.safetensors"]


def test_a_complete_numbered_set_needs_no_index(tmp_path: Path) -> None:
    shards(tmp_path, LAYOUT).unlink()
    assert [file.name for file in find_weights(tmp_path)] == list(LAYOUT)


def test_gguf_in_a_directory(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert len(find_weights(tmp_path)) == 2
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match="3 weight files"):
        find_weights(tmp_path)
