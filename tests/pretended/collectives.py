"""NCCL that is not there: collectives of pretended GPUs, by gloo among processes of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed
from queue_of_work import WORK
from tensors import OnDevice, held
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

dist: Any = torch.distributed


class Done:
    """The device waits for a collective, not the host."""

    def wait(self) -> bool:
        return True


class NCCL:
    """What `TorchGroup` asks of `ProcessGroupNCCL`."""

    class Options:
        _timeout = timedelta(minutes=1)

    def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
        gloo = dist.ProcessGroupGloo
        made = gloo._Options()
        made._devices, made._timeout, made._threads = [gloo.create_device(hostname="127.0.0.1")], options._timeout, 1
        self._gloo = gloo(store, rank, size, made)

    def allreduce(self, tensors: list[Tensor], *options: Any) -> Done:
        return self._run("allreduce", (tensors, *options), tensors)

    def allgather(self, parts: list[list[Tensor]], own: list[Tensor]) -> Done:
        return self._run("allgather", (parts, own), parts[0])

    def broadcast(self, tensor: Tensor, source: int) -> Done:
        return self._run("broadcast", (tensor, source), [tensor])

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Done:
        return self._run("send", (tensors, to, tag), ())

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Done:
        return self._run("recv", (tensors, source, tag), tensors)

    def abort(self) -> None:
        self._gloo.abort()

    def _run(self, name: str, args: tuple[Any, ...], written: Sequence[Tensor]) -> Done:
        for each in tree_leaves(args):
            if isinstance(each, Tensor) and not (isinstance(each, OnDevice) and each.held.is_contiguous()):
                raise RuntimeError("Tensors must be CUDA and dense")
        inner = tree_map(held, args)

        def collective() -> None:
            getattr(self._gloo, name)(*inner).wait()

        if WORK.graph is not None:
            for each in written:
                WORK.graph.may_write(held(each))
            WORK.graph.steps.append(collective)
        collective()
        return Done()
