"""Messages on a stream of bytes: four bytes of length (little-endian), then as many bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

LONGEST = 64 * 1024**2
_LENGTH = struct.Struct("<I")


class Frames:
    """Puts frames together from the pieces that a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes. Raises ValueError for one that is longer than `LONGEST`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _checked(_LENGTH.unpack_from(self._buffer)[0])
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield frame


def pack(frame: bytes) -> bytes:
    """A frame as it goes over the wire."""
    return _LENGTH.pack(len(frame)) + frame


def send_frame(channel: socket.socket, frame: bytes) -> None:
    channel.sendall(pack(frame))


def receive_frame(channel: socket.socket) -> bytes | None:
    """The next frame, waited for; None at the end of the stream. Raises ValueError as `Frames.feed` does."""
    head = _exactly(channel, _LENGTH.size)
    return None if head is None else _exactly(channel, _checked(_LENGTH.unpack(head)[0]))


def _checked(size: int) -> int:
    if size > LONGEST:
        raise ValueError(f"a frame of {size} bytes; at most {LONGEST} are taken")
    return size


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        piece = channel.recv(min(count - len(found), 65536))
        if not piece:
            return None
        found += piece
    return bytes(found)
