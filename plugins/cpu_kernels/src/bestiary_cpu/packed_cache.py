"""Packed weights on disk: made at a first start, mapped at later ones.

A file holds one packed weight. Its name is a hash of the weight's own bytes, as they were loaded, and of everything
else that decides what packing makes of them, so that a hit is never another model's, or another version's, whatever
happened to the model's files. What is read is checked piece by piece; anything but what was written is one line in the
log, and is packed again. Processes that have mapped the same file share its pages.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import UsageError
from bestiary.api.probe_cache import cache_directory

logger = logging.getLogger("bestiary")

VARIABLE = "BESTIARY_PACKED_CACHE"
WORTH_BYTES = 2**20
"""Smaller weights are packed in less time than it takes to open files."""
_PIECE = 2**20
_MAGIC = b"BSTPACK1"
_HEAD = struct.Struct("<8s32sQ")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)

Bytes = NDArray[np.uint8]
R = TypeVar("R")


class PackedCache:
    """A folder of packed weights, which this user alone may write to; at most `limit` bytes, the least used goes.

    Processes may share it. Nothing that goes wrong in it is an error: a weight is packed again, and that is said.
    """

    def __init__(self, folder: Path, limit: int, threads: int = 1) -> None:
        self.folder, self.limit, self.threads = folder, limit, threads
        self._refused = limit <= 0 or not hasattr(os, "geteuid")
        self._told = False

    def get(self, made_by: str, sources: list[Bytes], size: int, make: Callable[[], Bytes]) -> Bytes:
        """The `size` bytes that `made_by` makes of `sources`: mapped, or from `make`, which are then kept.

        `made_by` names everything beside the sources that decides what is made. Who writes to what is given back
        changes no file.
        """
        if self._refused:
            return make()
        key = self.key(made_by, sources)
        found = self.read(key, size)
        if found is None:
            found = make()
            self.write(key, found)
        return found

    def key(self, made_by: str, sources: list[Bytes]) -> bytes:
        """The name of what `made_by` makes of `sources`: SHA-256 over it and over their bytes."""
        whole = hashlib.sha256(made_by.encode())
        for source in sources:
            digests = self._each(_digest, source)
            whole.update(struct.pack("<Q", source.nbytes) + b"".join(digests))
        return whole.digest()

    def read(self, key: bytes, size: int) -> Bytes | None:
        """The packed weight, if it is here and whole."""
        path = self.folder / key.hex()
        if not os.path.lexists(path) or not self._trusted():
            return None
        try:
            found = self._read(path, key, size)
            with suppress(FileNotFoundError):  # let go by another process meanwhile
                os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: cut short between two looks at it
            found = str(error)
        if not isinstance(found, str):
            return found
        logger.warning("%s is ignored, and made again: %s", path, found)
        return None

    def write(self, key: bytes, data: Bytes) -> None:
        """Keep a packed weight. A reader finds all of it or nothing."""
        end = self._end(key, data)
        size = data.nbytes + len(end)
        if size > self.limit or not self._trusted(make=True):
            return
        path = self.folder / key.hex()
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            self._make_room(size)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with FileIO(descriptor, "wb") as file:
                for part in (data.data, memoryview(end)):
                    _write_all(file, part)
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self._tell()
        except OSError as error:
            self._refuse(error.strerror or str(error))
            with suppress(OSError):
                temporary.unlink()

    def _read(self, path: Path, key: bytes, size: int) -> Bytes | str:
        """The packed weight, or what is wrong with the file. No link is followed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not _ours(status):
                return "it is no file that this user alone can write to"
            expected = size + 4 * -(-size // _PIECE) + _HEAD.size
            if status.st_size != expected:
                return f"it has {status.st_size} bytes, not {expected}"
            mapped = np.frombuffer(mmap.mmap(descriptor, expected, access=mmap.ACCESS_COPY), np.uint8)
        finally:
            os.close(descriptor)
        if bytes(mapped[-_HEAD.size :]) != _HEAD.pack(_MAGIC, key, size):
            return "it is another file"
        data = mapped[:size]
        return data if bytes(mapped[size:]) == self._end(key, data) else "it is damaged"

    def _end(self, key: bytes, data: Bytes) -> bytes:
        """What follows the data in a file: a checksum of each piece, and what it is."""
        sums = self._each(zlib.crc32, data)
        return np.array(sums, "<u4").tobytes() + _HEAD.pack(_MAGIC, key, data.nbytes)

    def _trusted(self, *, make: bool = False) -> bool:
        """Whether the folder is there, and this user's alone; otherwise the cache is off for good."""
        try:
            if make:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700, exist_ok=True)
            status = os.lstat(self.folder)
        except OSError as error:
            return self._refuse(error.strerror or str(error))
        if not stat.S_ISDIR(status.st_mode) or not _ours(status):
            return self._refuse("it must be a folder that this user alone can write to")
        return True

    def _refuse(self, reason: str) -> bool:
        self._refused = True
        logger.warning("packed weights are not kept in %s: %s (%s=0 keeps none)", self.folder, reason, VARIABLE)
        return False

    def _tell(self) -> None:
        if not self._told:
            logger.warning(
                "packed weights are kept in %s: the next start is faster (%s=0 keeps none)", self.folder, VARIABLE
            )
        self._told = True

    def _make_room(self, size: int) -> None:
        """Let the files go that were used longest ago, until `size` bytes more are within the limit."""
        found = sorted(self._files(), key=lambda each: each[1].st_mtime_ns)
        held = sum(status.st_size for _, status in found)
        for path, status in found:
            if held + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            held -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Everything in the folder that is a file, unfinished ones too; others may take some away meanwhile."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield Path(entry.path), status

    def _each(self, work: Callable[[memoryview], R], data: Bytes) -> list[R]:
        """`work` of each piece of `data`, in order; several at a time."""
        pieces = _pieces(data)
        if self.threads < 2 or len(pieces) < 2:
            return [work(piece) for piece in pieces]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, pieces))


@functools.cache
def packed_cache(threads: int) -> PackedCache:
    """This process's: in ``packed`` of the cache folder, as large as ``BESTIARY_PACKED_CACHE`` says."""
    return PackedCache(cache_directory() / "packed", limit_of(os.environ.get(VARIABLE)), threads)


def limit_of(value: str | None) -> int:
    """Bytes: of ``500M`` or ``8G``; 0 or nothing is off."""
    if not value:
        return 0
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise UsageError("this is no size", field=VARIABLE, value=value, limit="0, or a size like 500M or 8G")
    return int(match[1]) * _UNITS[match[2].upper()]


def _pieces(data: Bytes) -> list[memoryview]:
    view = data.reshape(-1).data
    return [view[start : start + _PIECE] for start in range(0, data.nbytes, _PIECE)]


def _digest(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _write_all(file: FileIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
