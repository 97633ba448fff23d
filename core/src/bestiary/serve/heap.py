"""Memory that was freed and that the C library keeps for later: given back after work that took very much of it.

glibc has a heap for every thread. What many small objects took in one stays there when they are gone, so a process
would for ever be as large as it was for a moment. Other libraries do this by themselves.
"""

from __future__ import annotations

import ctypes
from functools import cache


def trim() -> None:
    """Give the system what is free in all heaps. Takes a tenth of a second for a gigabyte, without the interpreter's
    lock; meanwhile one heap after the other is locked."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
