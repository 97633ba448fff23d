"""GGUF files, versions 2 and 3, little endian, split ones included: metadata, and tensors as views of a read-only map.

A file is a header (`gguf_header`) and, aligned, the tensors' bytes. Only regular files are opened.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import CorruptGguf, LoadError
from bestiary.api.ggml_types import GgmlType
from bestiary.engine.loader.gguf_header import HEADER_START, Header, TensorInfo

_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor's description; `shape` is in torch order (GGUF writes the contiguous dimension first).

    Attributes:
        release: lets the system take back the memory of what was read; `data` may be asked for again.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    nbytes: int
    read: Callable[[], NDArray[np.uint8]] = field(repr=False, compare=False)
    release: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def data(self) -> NDArray[np.uint8]:
        """The blocks, uint8 (*shape[:-1], bytes per row): a read-only view of the map, or a copy where rows were moved.

        Raises:
            LoadError: the file is closed, or has been cut short since it was opened.
        """
        return self.read().reshape(*self.shape[:-1], -1)


class GgufFile:
    """An open GGUF file, or all files of a split one; owns the maps. A view of a tensor keeps its map after `close`."""

    def __init__(self, path: Path, shards: list[_Shard]) -> None:
        self.path = path
        self.metadata: Mapping[str, object] = MappingProxyType(shards[0].metadata)
        self.tensors: Mapping[str, GgufTensor] = MappingProxyType(_merged(shards))
        self._shards = shards

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufFile:
        """Reads the header; any file of a split one stands for all of them.

        Raises:
            CorruptGguf: the file breaks a rule of the format or of this reader.
            LoadError: the file cannot be read.
        """
        path = Path(path)
        shard = _Shard(path)
        count = shard.metadata.get("split.count", 1)
        if not isinstance(count, int) or count < 2:
            return cls(path, [shard])
        match = _SHARD_NAME.fullmatch(path.name)
        if match is None or int(match[3]) != count:
            raise CorruptGguf(
                f"{path.name} is one of {count} files, and its name does not say which",
                field="split.count",
                value=path.name,
                limit=f"NAME-00001-of-{count:05}.gguf",
            )
        names = [f"{match[1]}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
        return cls(path, [shard if name == path.name else _Shard(path.with_name(name)) for name in names])

    @property
    def architecture(self) -> str:
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise CorruptGguf(
                f"{self.path.name} does not say which architecture it holds", field="general.architecture", value=value
            )
        return value

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Shard:
    """One file: its map, its metadata, what it says of its tensors."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        opened, identity = _map(path)
        self._map: mmap.mmap | None = opened
        self.metadata = _metadata(opened, identity, self.name)
        self.infos = self.metadata.tensors

    def tensor(self, info: TensorInfo) -> GgufTensor:
        return GgufTensor(
            name=info.name,
            shape=info.shape,
            type=info.type,
            nbytes=info.nbytes,
            read=lambda: self._view(info.offset, info.nbytes),
            release=lambda: self._release(info.offset, info.nbytes),
        )

    def _view(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        if self._map is None:
            raise LoadError(f"{self.name} has been closed")
        size = self._map.size()
        if size < start + nbytes:  # reading beyond the end of a map kills the process
            raise LoadError(f"{self.name} was cut short while in use", value=size, limit=f"{start + nbytes} bytes")
        return np.frombuffer(self._map, dtype=np.uint8, count=nbytes, offset=start)

    def _release(self, start: int, nbytes: int) -> None:
        """Pages of the map that lie between are no longer this process's; the system's cache of the file stays."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if self._map is not None and advice is not None and length > 0:
            self._map.madvise(advice, first, length)

    def close(self) -> None:
        self._map = None


class _Metadata(dict[str, object]):
    """A header, parsed: its entries, and what it says of tensors."""

    def __init__(self, header: Header) -> None:
        super().__init__(header.metadata)
        self.tensors = header.tensors


_Identity = tuple[int, ...]
_in_use: WeakValueDictionary[_Identity, _Metadata] = WeakValueDictionary()


def _metadata(opened: mmap.mmap, identity: _Identity, name: str) -> _Metadata:
    """What a file's header says, parsed once for all who have the same file in use: with a large vocabulary that takes
    as long as reading a small model."""
    found = _in_use.get(identity)
    if found is None:
        found = _in_use[identity] = _Metadata(Header(opened, name))
    return found


def _map(path: Path) -> tuple[mmap.mmap, _Identity]:
    """The file, read-only, and what tells it from every other file, and from itself once it was changed.

    It is looked at before it is opened: opening a pipe blocks, a device may act.
    """
    try:
        _regular_size(path, os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            status = os.fstat(descriptor)
            size = _regular_size(path, status)
            identity = (status.st_dev, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), identity
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LoadError(f"{path.name!r} cannot be read: {reason}", fix="check the path and its permissions") from error


def _regular_size(path: Path, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise CorruptGguf(f"{path.name} is not a regular file", limit="a regular file, or a symbolic link to one")
    if status.st_size < HEADER_START:
        raise CorruptGguf(
            f"{path.name} is too short to be a GGUF file", value=status.st_size, limit=f"at least {HEADER_START} bytes"
        )
    return status.st_size


def _merged(shards: list[_Shard]) -> dict[str, GgufTensor]:
    """The tensors of all files, which must agree on being parts of one."""
    tensors: dict[str, GgufTensor] = {}
    for number, shard in enumerate(shards):
        if len(shards) > 1:
            _check_part(shard, number, len(shards))
        for info in shard.infos:
            if info.name in tensors:
                raise CorruptGguf(f"{shard.name}: tensor {info.name[:64]!r} stands in an earlier part too")
            tensors[info.name] = shard.tensor(info)
    total = shards[0].metadata.get("split.tensors.count", len(tensors))
    if len(shards) > 1 and total != len(tensors):
        raise CorruptGguf(
            f"the {len(shards)} parts hold {len(tensors)} tensors",
            field="split.tensors.count",
            value=total,
            limit=len(tensors),
        )
    return tensors


def _check_part(shard: _Shard, number: int, count: int) -> None:
    said = shard.metadata.get("split.no"), shard.metadata.get("split.count")
    if said != (number, count):
        raise CorruptGguf(
            f"{shard.name} is not part {number + 1} of {count}",
            field="split.no, split.count",
            value=said,
            limit=(number, count),
        )
