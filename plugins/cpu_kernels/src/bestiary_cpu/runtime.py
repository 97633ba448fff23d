"""What runs in this process: one thread pool, and the step that is being recorded, if one is."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bestiary.api.errors import EngineError

from . import __version__
from ._library import ISAS, library
from .arena import Arena
from .memory import Slabs, address, bytes_array
from .pool import Call, Pool

if TYPE_CHECKING:
    from .recorder import Recorder


_LARGE = 256 << 10
"""Bytes from which the system gives fresh memory for each result, which costs more than most ops do."""


class Runtime:
    """Owns the pool. Engines take turns, as they do with ops, so that one thread at a time is in here."""

    def __init__(self, threads: int) -> None:
        self.pool = Pool(threads)
        self.native = self.pool.library.native
        self.recorder: Recorder | None = None
        self.weights = Slabs()
        self.arena = Arena()
        self._scratch: list[NDArray[np.uint8] | None] = [None] * 4
        self._turn = 0

    def run(self, *calls: Call, keep: tuple[Tensor | None, ...] = ()) -> None:
        """Run `calls`, and note them where a step is recorded; `keep` are the tensors that they point to."""
        self.pool.run(calls)
        if self.recorder is not None:
            self.recorder.add(calls, keep)

    def empty(self, *shape: int) -> Tensor:
        """fp32, uninitialised; within a recorded step in memory that stays where it is."""
        return self._typed(shape, torch.float32)

    def integers(self, *shape: int) -> Tensor:
        """int64, as `empty`."""
        return self._typed(shape, torch.int64)

    def small(self, *shape: int) -> Tensor:
        """int32, as `empty`."""
        return self._typed(shape, torch.int32)

    def _typed(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.recorder is not None:
            return self.recorder.empty(shape, dtype)
        large = math.prod(shape) * dtype.itemsize >= _LARGE
        return self.arena.empty(shape, dtype) if large else torch.empty(shape, dtype=dtype)

    def prepared(self, size: int) -> int:
        """Where `size` bytes for prepared rows are. They are the caller's until the fourth call after this one."""
        self._turn = (self._turn + 1) % len(self._scratch)
        held = self._scratch[self._turn]
        if held is None or held.nbytes < size:
            held = self._scratch[self._turn] = bytes_array(size, self.pool.library)
        if self.recorder is not None:
            self.recorder.keep(held)
        return address(held) or 0


def runtime() -> Runtime:
    """This process's, with as many threads as torch has (`OMP_NUM_THREADS`, `torch.set_num_threads`)."""
    found, threads = _runtime(), torch.get_num_threads()
    if found.pool.threads != threads:
        found.pool.close()
        found.pool = Pool(threads)
    return found


@functools.cache
def _runtime() -> Runtime:
    return Runtime(torch.get_num_threads())


def description() -> dict[str, str | int]:
    """What kernels run on in this process, or would. Raises `BrokenPlugin`: no library here can be loaded."""
    here = library()
    able = ", ".join(ISAS[: here.native.bst_cpu_level() + 1])
    return {
        "library": f"bestiary-cpu {__version__}", "instruction_set": here.isa, "processor_runs": able,
        "threads": torch.get_num_threads(), "file": str(here.path),
    }  # fmt: skip


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Rows:
    """A tensor ``[..., n]`` as rows that lie evenly: copied where they do not.

    Attributes:
        tensor: whose memory it is. stride: elements from row to row.
    """

    __slots__ = ("count", "n", "stride", "tensor")

    def __init__(self, x: Tensor) -> None:
        if x.dtype is not torch.float32:
            raise EngineError("native kernels take float32 activations", field="dtype", value=str(x.dtype))
        if x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1):
            self.tensor, self.stride = x, x.stride(0)
        else:
            self.tensor = x if x.is_contiguous() else x.contiguous()
            self.stride = x.shape[-1]
        self.n = x.shape[-1]
        self.count = x.numel() // self.n if self.n else 0

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()
