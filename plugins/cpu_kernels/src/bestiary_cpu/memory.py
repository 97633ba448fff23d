"""Memory of the library's own: aligned, and in huge pages where there are any."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import EngineError

from ._library import Library, library

_SLAB = 64 << 20
_ALIGN = 64


def bytes_array(size: int, library_: Library | None = None) -> NDArray[np.uint8]:
    """`size` zero bytes, 64-byte aligned; freed with the last array that looks at them."""
    return _array(_buffer(size, library_))


def _buffer(size: int, library_: Library | None) -> Any:
    native = (library_ or library()).native
    address = native.bst_allocate(max(size, 1))
    if not address:
        raise EngineError("no memory for packed weights", value=size)
    buffer = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(buffer, native.bst_free, address, max(size, 1)).atexit = False
    return buffer


def _array(buffer: Any) -> NDArray[np.uint8]:
    return np.frombuffer(memoryview(buffer), np.uint8)


class Slabs:
    """Arrays that lie one after another, as weights do that are read in this order: large enough for huge pages, and
    for the processor to look ahead from one to the next. A slab is freed with the last of its arrays."""

    def __init__(self) -> None:
        self._slab: weakref.ref[Any] | None = None
        self._used = 0

    def take(self, size: int, library_: Library | None = None) -> NDArray[np.uint8]:
        """`size` zero bytes, 64-byte aligned."""
        size += -size % _ALIGN
        if size >= _SLAB:
            return bytes_array(size, library_)
        slab = None if self._slab is None else self._slab()
        if slab is None or self._used + size > _SLAB:
            slab = _buffer(_SLAB, library_)
            self._slab, self._used = weakref.ref(slab), 0
        self._used += size
        return _array(slab)[self._used - size : self._used]


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array's elements begin; None for none."""
    return None if array is None else array.ctypes.data
