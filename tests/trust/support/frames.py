"""Damaged messages between the processes: of every kind, mutated in every way that these tests know."""

from __future__ import annotations

import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Bytes = bytes
_EXTREMES = (
    b"\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xc0",
    b"\xc3",
)
"""-1, the largest and the smallest 64-bit integer, NaN, nil, true."""
_LONG = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")
"""The heads of an array, a map, a text and bytes with 2³² - 1 items."""


class Executed:
    """Unpickled, it leaves `path` behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def mutated(good: Sequence[bytes], sentinel: Path, seed: int) -> Iterator[bytes]:
    """Frames without end. What would run one by unpickling makes the folder `sentinel`."""
    draw = random.Random(seed)
    poison = [pickle.dumps(Executed(sentinel), protocol) for protocol in range(2, 6)]
    while True:
        frame = draw.choice(good)
        way = draw.choice(_WAYS)
        yield draw.choice(poison) if way is None else way(frame, draw, good)


def _noise(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    return draw.randbytes(draw.randint(0, 300))


def _flipped(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    data = bytearray(frame)
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _replaced(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(frame))
    return frame[:at] + draw.choice((*_EXTREMES, *_LONG)) + frame[at + draw.randint(0, 3) :]


def _truncated(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    return frame[: draw.randrange(len(frame))]


def _spliced(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    other = draw.choice(good)
    return frame[: draw.randrange(len(frame))] + other[draw.randrange(len(other)) :]


def _deep(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(frame))
    return frame[:at] + draw.choice((b"\x91", b"\x81\xa1a")) * draw.choice((10, 1000, 100_000)) + frame[at:]


def _as_it_is(frame: bytes, draw: random.Random, good: Sequence[bytes]) -> bytes:
    """Good, and out of order."""
    return frame


_WAYS: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes] | None, ...] = (
    _noise, _flipped, _flipped, _replaced, _replaced, _truncated, _spliced, _deep, _as_it_is, None,
)  # fmt: skip


def damaged_stream(frames: Sequence[bytes], draw: random.Random) -> bytes:
    """Frames as they go over the wire, with a length that is wrong, a piece missing, or one doubled."""
    stream = bytearray(b"".join(struct.pack("<I", len(frame)) + frame for frame in frames))
    at = draw.randrange(len(stream))
    match draw.randrange(3):
        case 0:
            stream[:4] = struct.pack("<I", draw.choice((0, 1, len(stream), 2**26, 2**31, 2**32 - 1)))
        case 1:
            del stream[at : at + draw.randint(1, 40)]
        case _:
            stream[at:at] = stream[at : at + draw.randint(1, 40)]
    return bytes(stream)
