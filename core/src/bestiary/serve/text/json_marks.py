"""How much structure a JSON text has, counted before anything is made of it: objects cost far more than their text."""

from __future__ import annotations

from typing import NamedTuple

_PIECE = 2**16


class Marks(NamedTuple):
    """What stands outside of the strings of a JSON text.

    Attributes:
        names: of its objects, each as often as it stands there. nodes: those, and the objects and lists.
        values: one for every comma, and so all values but one of each object and list.
    """

    names: int
    nodes: int
    values: int


def count_marks(data: bytes) -> Marks:
    """The marks of `data`; of a text that is no JSON, any numbers."""
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in data else data
    names = brackets = values = 0
    inside = False
    for start in range(0, len(plain), _PIECE):  # in pieces, between which other threads have their turn
        parts = plain[start : start + _PIECE].split(b'"')
        outside = b"".join(parts[inside::2])
        names += outside.count(b":")
        brackets += outside.count(b"{") + outside.count(b"[")
        values += outside.count(b",")
        inside ^= len(parts) % 2 == 0
    return Marks(names, names + brackets, values)
