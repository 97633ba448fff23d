"""`TorchGroup`: a group of several processes, over a process group of torch.distributed (gloo on CPUs, NCCL on CUDA).

A group is made before there is a connection, because a model is built, and may be refused, by numbers alone; it is
connected before weights are loaded. Nothing here touches torch's global default group, so that a user's own use of
torch.distributed and several engines in one process do not meet.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed

from bestiary.api.errors import EngineError

from .state import Group

dist: Any = torch.distributed  # whose process groups and stores are made in C++, without types
Store = Any
"""What ranks meet through: a `FileStore`, a `TCPStore`, or part of one."""

PEER_LOST, PEER_STALLED = "PEER_LOST", "PEER_STALLED"
"""Codes of errors that say that another rank is gone, or did not answer in time; not which, nor why."""


class TorchGroup(Group):
    """Collectives raise `EngineError` where a peer is gone (PEER_LOST) or does not answer in time (PEER_STALLED)."""

    waiting: ClassVar[int] = 0
    """How many threads of this process are in a collective now: who is not, while others wait, holds them up."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._backend: Any = None
        self._sends: list[Any] = []

    def connect(self, store: Store, *, device: str, address: str, timeout: float) -> None:
        """Meet the other ranks through `store`, which all of them share under the same prefix.

        Args:
            device: "cpu" or "cuda". address: where this rank listens for its peers (gloo). timeout: seconds.
        """
        make = _nccl if device == "cuda" else _gloo
        with _reporting():
            self._backend = make(store, self.rank, self.world_size, address, timedelta(seconds=timeout))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        summed = tensor.clone(memory_format=torch.contiguous_format)
        with _reporting():
            self._live.allreduce([summed]).wait()
        return summed

    def smallest(self, value: int) -> int:
        """The smallest of every rank's `value`."""
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN
        held = torch.tensor([value])
        with _reporting():
            self._live.allreduce([held], options).wait()
        return int(held)

    def all_gather(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        own = tensor.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        with _reporting():
            self._live.allgather([parts], [own]).wait()
        return torch.cat(parts, dim)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor`, contiguous and of the same shape everywhere, with rank `source`'s."""
        with _reporting():
            self._live.broadcast(tensor, source).wait()

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send without waiting until it was received; at most the tensors of one step are on their way at a time."""
        tensor = tensor.contiguous()
        with _reporting():
            self._sends.append((self._live.send([tensor], to, 0), tensor))

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor` with what rank `source` sent next."""
        with _reporting():
            self._live.recv([tensor], source, 0).wait()

    def wait_for_sends(self) -> None:
        """Until everything sent so far has left."""
        sends, self._sends = self._sends, []
        with _reporting():
            for work, _ in sends:
                work.wait()

    def close(self) -> None:
        """Leave; peers that still wait for this rank get an error."""
        backend, self._backend = self._backend, None
        self._sends.clear()
        if backend is not None:
            backend.abort()

    @property
    def _live(self) -> Any:
        if self._backend is None:
            raise EngineError("this process group is not connected, or was closed", code=PEER_LOST)
        return self._backend


class _reporting:
    """Turns what torch raises about peers into `EngineError`."""

    def __enter__(self) -> None:
        TorchGroup.waiting += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        TorchGroup.waiting -= 1
        if isinstance(error, RuntimeError):
            code = PEER_STALLED if "imed out" in str(error) or "imeout" in str(error) else PEER_LOST
            raise EngineError(str(error).split("\n", maxsplit=1)[0], code=code) from error


def _gloo(store: Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timeout
    options._threads = 1
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    """NCCL finds its own way among devices and hosts; a stuck collective is aborted after `timeout`."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)
