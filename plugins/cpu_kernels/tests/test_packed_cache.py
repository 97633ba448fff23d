"""Packed weights on disk: what is read is what was made, whatever happened to the files meanwhile."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import blocks

from bestiary.api.errors import UsageError
from bestiary.api.ggml_types import GgmlType
from bestiary_cpu import packed_cache, products
from bestiary_cpu.packed_cache import Bytes, PackedCache, limit_of

SIZE = 3 * 2**20 + 100
SOURCE = np.arange(5000, dtype=np.uint8).reshape(50, 100)


def made(number: int = 1) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)


def never() -> Bytes:
    raise AssertionError("packed again")


def files(cache: PackedCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "cache" / "packed", 2**30, threads=2)


@pytest.fixture
def kept(cache: PackedCache) -> PackedCache:
    """With one weight in it, made by "x" of `SOURCE`."""
    assert np.array_equal(cache.get("x", [SOURCE], SIZE, made), made())
    return cache


def test_what_was_made_once_is_read(kept: PackedCache) -> None:
    again = PackedCache(kept.folder, 2**30)
    found = again.get("x", [SOURCE.copy()], SIZE, never)
    assert np.array_equal(found, made())
    assert (files(kept)[0].stat().st_mode & 0o777, kept.folder.stat().st_mode & 0o777) == (0o600, 0o700)
    found[:] = 0  # a private copy: the file stays
    assert np.array_equal(again.get("x", [SOURCE], SIZE, never), made())


@pytest.mark.parametrize(
    ("maker", "source"), [("y", SOURCE), ("x", SOURCE + 1), ("x", SOURCE[:-1]), ("x", SOURCE[::-1])]
)
def test_another_maker_or_another_weight_is_no_hit(kept: PackedCache, maker: str, source: Bytes) -> None:
    got = kept.get(maker, [np.ascontiguousarray(source)], SIZE, lambda: made(2))
    assert np.array_equal(got, made(2))
    assert len(files(kept)) == 2


def test_parts_are_told_apart(cache: PackedCache) -> None:
    keys = {cache.key("x", parts) for parts in ([SOURCE], [SOURCE[:20], SOURCE[20:]], [SOURCE[:30], SOURCE[30:]])}
    assert len(keys) == 3
    assert PackedCache(cache.folder, 1, threads=1).key("x", [made()]) == cache.key("x", [made()])


def flip(at: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)

    return spoil


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILT = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"1"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "first byte": flip(0),
    "in the middle": flip(2**20),
    "last byte of the weight": flip(SIZE - 1),
    "checksum": flip(SIZE + 1),
    "magic": flip(-48),
    "key": flip(-30),
    "size": flip(-1),
    "writable for others": lambda path: path.chmod(0o622),
    "unreadable": lambda path: path.chmod(0o022),
    "link": link,
    "pipe": pipe,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_anything_else_is_told_and_made_again(
    kept: PackedCache, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = files(kept)
    spoil(path)
    caplog.clear()
    assert np.array_equal(kept.get("x", [SOURCE], SIZE, made), made())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "is ignored, and made again" in record.message
    assert np.array_equal(kept.get("x", [SOURCE], SIZE, never), made())
    assert len(caplog.records) == 1


def test_another_weights_file_under_this_name(kept: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    kept.get("y", [SOURCE], SIZE, lambda: made(2))
    mine = kept.folder / kept.key("x", [SOURCE]).hex()
    (other,) = (path for path in files(kept) if path != mine)
    other.replace(mine)
    assert np.array_equal(kept.get("x", [SOURCE], SIZE, made), made())
    assert "it is another file" in caplog.text


def no_folder(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")


def others_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def linked_folder(folder: Path) -> None:
    folder.parent.mkdir()
    (folder.parent / "real").mkdir()
    folder.symlink_to("real")


@pytest.mark.parametrize("arrange", [no_folder, others_folder, linked_folder])
def test_a_folder_that_is_not_this_users_alone_is_not_used(
    cache: PackedCache, arrange: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    arrange(cache.folder)
    for number in (1, 2):
        assert np.array_equal(cache.get("x", [SOURCE], SIZE, lambda number=number: made(number)), made(number))
    (record,) = caplog.records
    assert "are not kept in" in record.message
    assert cache.folder.is_file() or not files(cache)


def test_the_least_used_goes(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "packed", int(2.5 * SIZE))
    for name, age in (("a", 300), ("b", 200)):
        cache.get(name, [SOURCE], SIZE, made)
        path = cache.folder / cache.key(name, [SOURCE]).hex()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    mapped = cache.get("b", [SOURCE], SIZE, never)
    cache.get("a", [SOURCE], SIZE, never)
    os.utime(cache.folder / cache.key("b", [SOURCE]).hex(), (0, 0))
    cache.get("c", [SOURCE], SIZE, made)
    assert {path.name for path in files(cache)} == {cache.key(name, [SOURCE]).hex() for name in "ac"}
    assert np.array_equal(mapped, made())  # what is in use stays, its name is gone


def test_a_hit_counts_as_a_use(kept: PackedCache) -> None:
    (path,) = files(kept)
    os.utime(path, (0, 0))
    kept.get("x", [SOURCE], SIZE, never)
    assert path.stat().st_mtime > 0


@pytest.mark.parametrize("limit", [0, SIZE])
def test_nothing_is_kept_beyond_the_limit(tmp_path: Path, limit: int) -> None:
    cache = PackedCache(tmp_path / "packed", limit)
    assert np.array_equal(cache.get("x", [SOURCE], SIZE, made), made())
    assert not cache.folder.exists() or not files(cache)


def test_a_full_disk_is_told_once_and_nothing_is_left(
    cache: PackedCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        assert np.array_equal(cache.get("x", [SOURCE], SIZE, made), made())
    assert [("No space left" in record.message) for record in caplog.records] == [True]
    assert not files(cache)


def test_sizes() -> None:
    assert [limit_of(text) for text in (None, "", "0", "500M", "8G", "2 gib".replace(" ", ""), "7")] == [
        0, 0, 0, 500 * 2**20, 8 * 2**30, 2 * 2**30, 7,
    ]  # fmt: skip
    for text in ("-1", "8 G", "1.5G", "much", "٣"):
        with pytest.raises(UsageError) as caught:
            limit_of(text)
        assert caught.value.field == "BESTIARY_PACKED_CACHE"


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackedCache]:
    """The cache that `products.pack` uses."""
    here = PackedCache(tmp_path / "packed", 2**30)
    monkeypatch.setattr(products, "packed_cache", lambda threads: here)
    return here


def test_weights_packed_and_read_multiply_alike(used: PackedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (GgmlType.Q8_0, GgmlType.Q4_K)
    sources = [(kind, torch.from_numpy(blocks(kind, 1100, 1024))) for kind in kinds]
    x = torch.randn(3, 1024)
    first = products.pack(sources, 1024)
    monkeypatch.setattr(products, "PackArgs", lambda *arguments: never())
    second = products.pack(sources, 1024)
    assert first is not None and second is not None
    assert torch.equal(first.data, second.data)
    assert torch.equal(products.product(x, first.contents), products.product(x, second.contents))
    assert len(files(used)) == 1


@pytest.mark.parametrize(("kind", "rows"), [(GgmlType.Q8_0, 64), (GgmlType.F32, 1024)])
def test_what_is_packed_as_fast_is_not_kept(used: PackedCache, kind: GgmlType, rows: int) -> None:
    products.pack([(kind, torch.from_numpy(blocks(kind, rows, 1024)))], 1024)
    assert not used.folder.exists()


SHARED = """
import sys
from pathlib import Path
import numpy as np
from bestiary_cpu.packed_cache import PackedCache
folder, number = Path(sys.argv[1]), int(sys.argv[2])
cache = PackedCache(folder, 12 * 2**20)
for turn in range(12):
    name = str((turn + number) % 5)
    found = cache.get(name, [np.zeros(9, np.uint8)], 3 * 2**20, lambda: np.full(3 * 2**20, int(name), np.uint8))
    assert (found == int(name)).all()
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    command = [sys.executable, "-c", SHARED, str(folder)]
    started = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(2)]
    said = [each.communicate(timeout=120)[1] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    assert not any("ignored" in text for text in said), said
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 2**20 + 4 * 2**20


def test_the_process_wide_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path))
    monkeypatch.setenv(packed_cache.VARIABLE, "5M")
    here = packed_cache.packed_cache.__wrapped__(3)
    assert (here.folder, here.limit, here.threads) == (tmp_path / "packed", 5 * 2**20, 3)
