"""Writes GGUF files byte by byte, honest or not: whatever a test says stands in the file, stands in it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


@dataclass(frozen=True)
class Tensor:
    """A description; `dims` in GGUF's order, the contiguous one first."""

    name: str = "t"
    dims: Sequence[int] = (4,)
    type: int = 0
    offset: int = 0
    rank: int | None = None

    def encoded(self) -> bytes:
        rank = len(self.dims) if self.rank is None else self.rank
        head = string(self.name) + struct.pack("<I", rank)
        return head + struct.pack(f"<{len(self.dims)}QIQ", *self.dims, self.type, self.offset)


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def scalar(kind: int, value: object) -> bytes:
    return string(str(value)) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)


def entry(key: str | bytes, kind: int, value: object) -> bytes:
    return string(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(key: str, kind: int, values: Sequence[object], count: int | None = None) -> bytes:
    head = string(key) + struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, value) for value in values)


def forge(
    entries: Sequence[bytes] = (),
    tensors: Sequence[Tensor] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    entry_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
    order: str = "<",
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    header = magic + struct.pack(f"{order}IQQ", version, *counts)
    header += b"".join(entries) + b"".join(tensor.encoded() for tensor in tensors)
    return header + bytes(-len(header) % alignment) + data


def small_file() -> bytes:
    """An honest file of about 5 KiB with every kind of metadata and two tensors."""
    entries = [entry("general.architecture", STRING, "llama"), entry("general.alignment", U32, 32)]
    entries += [entry(f"k.{kind}", kind, 1) for kind in _FORMATS]
    entries += [array(f"a.{kind}", kind, [1, 0, 1]) for kind in _FORMATS]
    entries += [array("a.text", STRING, [f"token{i}" for i in range(150)]), array("a.long", I32, range(600))]
    tensors = [Tensor("x.weight", (32, 2), 2, 0), Tensor("y.weight", (3,), 0, 64)]
    return forge(entries, tensors, bytes(range(36)) + bytes(28) + struct.pack("<3f", 1.0, 2.0, 3.0))
