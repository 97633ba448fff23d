"""Arrays in memory of the library's own: aligned, and in huge pages where there are any."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import EngineError

from ._library import Library, library


def bytes_array(size: int, library_: Library | None = None) -> NDArray[np.uint8]:
    """`size` zero bytes, 64-byte aligned; freed with the last array that looks at them."""
    native = (library_ or library()).native
    address = native.bst_allocate(max(size, 1))
    if not address:
        raise EngineError("no memory for packed weights", value=size)
    buffer = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(buffer, native.bst_free, address, max(size, 1)).atexit = False
    return np.frombuffer(memoryview(buffer), np.uint8)


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array's elements begin; None for none."""
    return None if array is None else array.ctypes.data
