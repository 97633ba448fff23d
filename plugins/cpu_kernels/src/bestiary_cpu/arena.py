"""Memory that stays where it is, and is used again as soon as the tensor that had it is gone.

All steps that one recorder records share an arena: they run one at a time and leave nothing behind for each other.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from bisect import bisect_right, insort

import torch
from torch import Tensor

from .memory import address, bytes_array

_ALIGN = 64
_CHUNK = 4 << 20


class Arena:
    """Best fit over a few chunks, which only grow in number."""

    def __init__(self) -> None:
        self._chunks: dict[int, object] = {}
        self._ends: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._lock = threading.RLock()  # tensors may end in any thread

    @property
    def nbytes(self) -> int:
        return sum(end - start for start, end in self._ends.items())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised; its bytes return to the arena with the last tensor that looks at them."""
        size = max(math.prod(shape) * dtype.itemsize, 1)
        size += -size % _ALIGN
        with self._lock:
            at = self._take(size)
        buffer = (ctypes.c_uint8 * size).from_address(at)
        weakref.finalize(buffer, self._give, at, size).atexit = False
        return _tensor(buffer, shape, dtype)

    def lasting(self, tensor: Tensor) -> Tensor:
        """The same place, but not held: other steps may use it as well. What is not the arena's is given back."""
        if not self.owns(tensor.data_ptr()):
            return tensor
        size = max(tensor.nbytes, 1)
        return _tensor((ctypes.c_uint8 * size).from_address(tensor.data_ptr()), tuple(tensor.shape), tensor.dtype)

    def owns(self, at: int) -> bool:
        starts = sorted(self._ends)
        index = bisect_right(starts, at) - 1
        return index >= 0 and at < self._ends[starts[index]]

    def _take(self, size: int) -> int:
        fitting = [(room, index) for index, (_, room) in enumerate(self._free) if room >= size]
        if not fitting:
            self._grow(max(size, _CHUNK))
            return self._take(size)
        room, index = min(fitting)
        at = self._free[index][0]
        if room == size:
            del self._free[index]
        else:
            self._free[index] = (at + size, room - size)
        return at

    def _grow(self, size: int) -> None:
        chunk = bytes_array(size)
        at = address(chunk) or 0
        self._chunks[at], self._ends[at] = chunk, at + size
        insort(self._free, (at, size))

    def _give(self, at: int, size: int) -> None:
        with self._lock:
            self._join(at, size)

    def _join(self, at: int, size: int) -> None:
        index = bisect_right(self._free, (at, 0))
        after = self._free[index] if index < len(self._free) else None
        if after is not None and at + size == after[0] and after[0] not in self._ends:
            size += after[1]
            del self._free[index]
        before = self._free[index - 1] if index else None
        if before is not None and sum(before) == at and at not in self._ends:
            self._free[index - 1] = (before[0], before[1] + size)
        else:
            self._free.insert(index, (at, size))


def _tensor(buffer: ctypes.Array[ctypes.c_uint8], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)
