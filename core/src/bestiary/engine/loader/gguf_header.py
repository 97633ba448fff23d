"""The header of a GGUF file: magic, version, metadata entries and tensor descriptions.

Nothing in it is trusted: every count, length and offset is checked against the bytes that remain before anything is
allocated for it, and the header as a whole against `MAX_HEADER_BYTES`. What breaks a rule is a `CorruptGguf` that names
the place. Metadata is copied out of the map, so that it outlives the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import CorruptGguf
from bestiary.api.ggml_types import GgmlType, type_of

MAX_HEADER_BYTES = 64 << 20
"""Metadata and tensor descriptions together; the largest vocabularies in use take about 20 MiB."""
MAX_ENTRIES = 1 << 16
"""Metadata entries; tensors."""
MAX_STRINGS = 1 << 21
"""Strings in all arrays together: tokens, merges."""
MAX_DIMS = 4
LISTED_NUMBERS = 1024
"""Number arrays up to this length become lists, longer ones read-only numpy arrays."""

HEADER_START = 24
"""Magic, version and the two counts."""

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_SMALLEST_ENTRY = 13  # a key's length, a type, one byte
_SMALLEST_TENSOR = 32  # a name's length, the number of dimensions, one dimension, type, offset

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


class TensorInfo(NamedTuple):
    """One tensor's description: shape in torch order, offset and size in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


class Header:
    """Parses one header, front to back; `at` is the next byte."""

    def __init__(self, source: mmap.mmap, name: str) -> None:
        self.source, self.name = source, name
        self.size = len(source)
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.at = 0
        self.strings_left = MAX_STRINGS
        self._magic_and_version()
        tensor_count, entry_count = self._u64(), self._u64()
        self._check_count("tensors", tensor_count, _SMALLEST_TENSOR)
        self._check_count("metadata entries", entry_count, _SMALLEST_ENTRY)
        self.metadata: dict[str, object] = {}
        for _ in range(entry_count):
            self._entry()
        alignment = self._alignment()
        described = [self._tensor(alignment) for _ in range(tensor_count)]
        data_start = -(-self.at // alignment) * alignment
        self.tensors = self._placed(described, data_start)

    def fail(self, message: str, *, value: object = None, limit: object = None, code: str | None = None) -> NoReturn:
        raise CorruptGguf(f"{self.name}: {message}", code=code, field=f"byte {self.at}", value=value, limit=limit)

    def _skip(self, count: int, what: str) -> int:
        """Claims the next `count` bytes and gives their offset."""
        start, left = self.at, self.end - self.at
        if count > left:
            bound = "of the file" if self.end == self.size else f"of the {MAX_HEADER_BYTES} a header may have"
            self.fail(f"{what} takes {count} bytes", value=count, limit=f"the {left} bytes that remain {bound}")
        self.at = start + count
        return start

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self.source, self._skip(4, "a 32-bit number"))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self.source, self._skip(8, "a 64-bit number"))[0]
        return value

    def _text(self, what: str) -> str:
        length = self._u64()
        start = self._skip(length, what)
        try:
            return self.source[start : start + length].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", value=self.source[start : start + min(length, 64)])

    def _magic_and_version(self) -> None:
        magic = self.source[self._skip(4, "the magic") : self.at]
        if magic != _MAGIC:
            self.fail("not a GGUF file", value=magic, limit=f"begins with {_MAGIC!r}")
        version = self._u32()
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            order = "big-endian GGUF" if swapped in (1, 2, 3) else "GGUF version"
            self.fail(
                f"{order} {min(version, swapped)} is not supported",
                value=version,
                limit="version 2 or 3, little endian",
            )

    def _check_count(self, what: str, count: int, smallest: int) -> None:
        limit = min(MAX_ENTRIES, (self.end - self.at) // smallest)
        if count > limit:
            self.fail(f"{count} {what}", value=count, limit=f"at most {limit} here")

    def _entry(self) -> None:
        key = self._text("a metadata key")
        if key in self.metadata:
            self.fail(f"two metadata entries are called {key[:64]!r}", value=key)
        kind = self._u32()
        if kind == _STRING:
            self.metadata[key] = self._text(f"the text {key[:64]!r}")
        elif kind == _ARRAY:
            self.metadata[key] = self._array(key)
        else:
            self.metadata[key] = self._numbers(key, kind, 1)[0].item()

    def _array(self, key: str) -> object:
        kind, count = self._u32(), self._u64()
        if kind == _STRING:
            return self._texts(key, count)
        numbers = self._numbers(key, kind, count)
        if count <= LISTED_NUMBERS:
            return numbers.tolist()
        numbers.flags.writeable = False
        return numbers

    def _numbers(self, key: str, kind: int, count: int) -> NDArray[Any]:
        dtype = _NUMBERS.get(kind)
        if dtype is None:
            self.fail(f"{key[:64]!r} has an unknown type", value=kind, limit=f"one of {sorted(_NUMBERS)}")
        start = self._skip(count * dtype.itemsize, f"{key[:64]!r}")
        raw = self.source[start : self.at]
        if kind == _BOOL and raw.strip(b"\0\1"):
            self.fail(f"{key[:64]!r} holds a boolean that is neither 0 nor 1")
        return np.frombuffer(bytearray(raw), dtype=dtype)

    def _texts(self, key: str, count: int) -> list[str]:
        """The fast path of a vocabulary: 100,000 strings in about 50 ms."""
        limit = min(self.strings_left, (self.end - self.at) // 8)
        if count > limit:
            self.fail(f"{key[:64]!r} has {count} strings", value=count, limit=f"at most {limit} here")
        self.strings_left -= count
        source, end, length_at = self.source, self.end, _U64.unpack_from
        at, texts = self.at, []
        try:
            for _ in range(count):
                start = at + 8
                if start > end:
                    break
                at = start + length_at(source, at)[0]
                if at > end:
                    break
                texts.append(source[start:at].decode())
        except UnicodeDecodeError as error:
            self.at = start
            self.fail(f"string {len(texts)} of {key[:64]!r} is not UTF-8", value=error.object)
        if len(texts) < count:
            self.at = min(start, end)
            self.fail(
                f"string {len(texts)} of {key[:64]!r} goes past the end",
                value=at - start,
                limit=f"{end - self.at} bytes",
            )
        self.at = at
        return texts

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.fail("the alignment is not a power of two", value=alignment, limit="general.alignment: a power of two")
        return alignment

    def _tensor(self, alignment: int) -> TensorInfo:
        name = self._text("a tensor's name")
        shown = repr(name[:64])
        rank = self._u32()
        if not 1 <= rank <= MAX_DIMS:
            self.fail(f"tensor {shown} has {rank} dimensions", value=rank, limit=f"1 to {MAX_DIMS}")
        dims = [self._u64() for _ in range(rank)]
        number, offset = self._u32(), self._u64()
        kind = type_of(number)
        if kind is None:
            self.fail(
                f"tensor {shown} has a type that is not known", value=number, limit="a type of ggml as of its number 42"
            )
        if 0 in dims or dims[0] % kind.block_size:
            self.fail(
                f"tensor {shown} is not made of whole {kind.name} blocks",
                value=dims,
                limit=f"rows of {kind.block_size} n",
            )
        nbytes = math.prod(dims) // kind.block_size * kind.type_size
        if nbytes > self.size:
            self.fail(
                f"tensor {shown} {dims} takes {nbytes} bytes, the file has {self.size}",
                code="GGUF_TENSOR_TOO_LARGE",
                value=nbytes,
                limit=f"the file's {self.size} bytes",
            )
        if offset % alignment:
            self.fail(
                f"tensor {shown} is not aligned", value=offset, limit=f"an offset that is a multiple of {alignment}"
            )
        return TensorInfo(name, tuple(reversed(dims)), kind, offset, nbytes)

    def _placed(self, described: list[TensorInfo], data_start: int) -> list[TensorInfo]:
        """The tensors with offsets from the file's start: inside the file, apart, under different names."""
        names: set[str] = set()
        for tensor in described:
            if tensor.name in names:
                self.fail(f"two tensors are called {tensor.name[:64]!r}", value=tensor.name)
            names.add(tensor.name)
        taken, owner = 0, ""
        for tensor in sorted(described, key=lambda tensor: tensor.offset):
            shown = repr(tensor.name[:64])
            if tensor.offset < taken:
                self.fail(f"tensor {shown} overlaps {owner}", value=tensor.offset, limit=f"an offset from {taken} on")
            taken, owner = tensor.offset + tensor.nbytes, shown
            if data_start + taken > self.size:
                self.fail(
                    f"tensor {shown} ends at byte {data_start + taken}, the file at {self.size}: incomplete or damaged",
                    value=tensor.offset,
                    limit=f"the file's {self.size} bytes",
                )
        return [tensor._replace(offset=data_start + tensor.offset) for tensor in described]
