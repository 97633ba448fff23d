"""What a process keeps of memory that it no longer needs: as little as the C library can be told.

glibc has a heap for every thread. What many small objects took in one stays there when they are gone, so a process
would for ever be as large as it was for a moment. Other libraries do what is here by themselves.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_LARGE_BYTES = 256 * 2**10
_KEPT_BYTES = 128 * 2**10


def give_large_buffers_back() -> bool:
    """From now on, memory of large buffers goes back to the system when they are freed.

    glibc learns from the largest buffer that it has seen to keep as much again of what is freed, in every thread's
    heap: after bodies of 8 MiB, tens of MiB. Returns whether this C library could be told.
    """
    library = _glibc()
    if library is None:
        return False
    return all([library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES), library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)])


def trim() -> None:
    """Give the system what is free in all heaps, after work that took very much. Takes a tenth of a second for a
    gigabyte, without the interpreter's lock; meanwhile one heap after the other is locked."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "malloc_trim") else None
