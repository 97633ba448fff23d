"""What a pretended GPU was given to do: copies that somebody has to wait for, and the graph that is being captured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

import torch
from torch import Tensor

NOTHING_IS_KNOWN = 0xFF
"""Each byte of memory that nobody has written: NaN, or −1."""


class Waits(RuntimeError):
    """As torch raises it where a captured step waits for the device."""

    def __init__(self, who: str) -> None:
        super().__init__(f"CUDA error: operation not permitted when stream is capturing: {who}")


@torch.inference_mode()
def forget(x: Tensor) -> None:
    """From now on nobody knows what lies there."""
    if x.numel():
        length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        x.as_strided((length,), (1,)).view(torch.uint8).fill_(NOTHING_IS_KNOWN)


def where(x: Tensor) -> int:
    """The address of the memory that it lies in."""
    return int(x.untyped_storage().data_ptr())


@dataclass
class Graph:
    """What was done while it was captured. Nothing runs then: at the end, memory of others has what it had before, and
    its own is unknown, as it is whenever the graph begins to run.

    Attributes:
        steps: each does again what was done. made: tensors in memory of its own, which is at `own`.
        before: others' memory that it may have written, by address, and what that had.
    """

    steps: list[Callable[[], object]] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    own: set[int] = field(default_factory=set)
    before: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def makes(self, tensor: Tensor) -> None:
        self.own.add(where(tensor))
        self.made.append(tensor)

    def may_write(self, tensor: Tensor) -> None:
        at, storage = where(tensor), tensor.untyped_storage()
        if storage.nbytes() and at not in self.own and at not in self.before:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
            self.before[at] = whole, whole.clone()

    @torch.inference_mode()
    def end(self) -> None:
        for whole, was in self.before.values():
            whole.copy_(was)
        self.before.clear()
        for each in self.made:
            forget(each)

    @torch.inference_mode()
    def replay(self) -> None:
        for each in self.made:
            forget(each)
        for step in self.steps:
            step()


@dataclass
class Work:
    """Copies are numbered as they are begun, and done at the latest when somebody waits for them.

    Attributes:
        leaving: pinned memory that the device reads, and what it had when the copy was begun.
        arriving: pinned memory that the device writes, and what it will have.
        waits: how often the host waited for everything, by whom. mode: as `torch.cuda.set_sync_debug_mode` has it.
    """

    begun: int = 0
    leaving: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    arriving: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    mode: str = "default"
    graph: Graph | None = None
    _one_thread: RLock = field(default_factory=RLock)

    def set_mode(self, mode: str) -> None:
        self.mode = mode

    def wait(self, who: str) -> None:
        """Somebody waits for everything."""
        if self.graph is not None:
            raise Waits(who)
        if self.mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {who}")
        self.waits[who] += 1
        self.done(self.begun)

    def leaves(self, pinned: Tensor) -> None:
        """The device will read pinned memory."""
        with self._one_thread:
            self._unchanged()
            self.begun += 1
            self.leaving.append((self.begun, pinned, pinned.clone()))

    def arrives(self, pinned: Tensor, value: Tensor) -> None:
        """The device will write pinned memory."""
        with self._one_thread:
            self.begun += 1
            self.arriving.append((self.begun, pinned, value.clone()))
            forget(pinned)

    @torch.inference_mode()
    def done(self, until: int) -> None:
        """The copies up to that number are done."""
        with self._one_thread:
            self._unchanged()
            for number, pinned, value in self.arriving:
                if number <= until:
                    pinned.copy_(value)
            self.leaving = [each for each in self.leaving if each[0] > until]
            self.arriving = [each for each in self.arriving if each[0] > until]

    def _unchanged(self) -> None:
        for _, pinned, was in self.leaving:
            if not torch.equal(_bytes(pinned), _bytes(was)):
                raise RuntimeError(
                    f"pinned memory was written while the device may still read it: {pinned.dtype} {list(pinned.shape)}"
                )


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


WORK = Work()
