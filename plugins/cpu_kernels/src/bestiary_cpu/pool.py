"""The thread pool, and lists of kernel calls for it to run."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bestiary.api.errors import EngineError

from ._abi import BUSY, FORKED, KERNELS, Step
from ._library import Library, library
from .threads import physical_cores


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call: the symbol, its argument structure, and whether it needs what was called before it."""

    kernel: str
    args: ctypes.Structure
    wait: bool = True

    def __post_init__(self) -> None:
        if type(self.args) is not KERNELS[self.kernel]:
            raise EngineError(f"{self.kernel} takes {KERNELS[self.kernel].__name__}, not {type(self.args).__name__}")


class Pool:
    """`threads` threads, of which the caller of `run` is one. Ends with `close`, or when it is no longer referred to.

    One thread at a time may call `run`. After a fork the child's copy refuses to run: make another pool there.
    """

    def __init__(self, threads: int | None = None, library_: Library | None = None) -> None:
        self.library = library_ or library()
        self.threads = threads or physical_cores()
        self._handle: Any = self.library.native.bst_pool_create(self.threads)
        if not self._handle:
            raise EngineError("the system has no more threads", field="threads", value=self.threads)

    def run(self, calls: Sequence[Call]) -> None:
        """Run the calls in order, each divided among all threads."""
        steps = (Step * len(calls))()
        for step, call in zip(steps, calls, strict=True):
            step.kernel = kernel_address(self.library.native, call.kernel)
            step.args = ctypes.addressof(call.args)
            step.wait = call.wait
        self.run_steps(steps)

    def run_steps(self, steps: ctypes.Array[Step]) -> None:
        """Run steps whose addresses are filled in; whoever made them keeps what they point to."""
        if self._handle is None:
            raise EngineError("the thread pool is closed")
        refusal = self.library.native.bst_run(self._handle, steps, len(steps))
        if refusal == FORKED:
            raise EngineError("this thread pool belongs to the parent process", fix="make a Pool after the fork")
        if refusal == BUSY:
            raise EngineError("another thread is using this thread pool", fix="a Pool for each thread")

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self.library.native.bst_pool_destroy(handle)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


@functools.cache
def kernel_address(native: ctypes.CDLL, kernel: str) -> int | None:
    return ctypes.cast(getattr(native, kernel), ctypes.c_void_p).value
