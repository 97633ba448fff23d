"""What a server's process keeps of memory that it no longer needs."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_LARGE_BYTES = 256 * 2**10
_KEPT_BYTES = 128 * 2**10


def give_large_buffers_back() -> bool:
    """From now on, memory of large buffers goes back to the system when they are freed.

    glibc learns from the largest buffer that it has seen to keep as much again of what is freed, in every thread's
    arena: after bodies of 8 MiB, tens of MiB. Returns whether this C library could be told; others do not do it.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_TRIM_THRESHOLD, _KEPT_BYTES), mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)])
