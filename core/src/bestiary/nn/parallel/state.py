"""Process groups as layers see them: tensor, pipeline, expert and data parallel.

One process alone is the default: every group then has one rank and its collectives are the identity. One of several
ranks installs its groups while its model is built and while a step runs (`use_groups`). They hold for the thread that
installed them, so that engines of different layouts, and ranks that are threads of one process, do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch


class Group:
    """A process group of one; wider groups override the collectives.

    Attributes:
        rank, world_size: this process's place. `is_first_rank`, `is_last_rank`: the ends of a pipeline.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    @property
    def rank_in_group(self) -> int:
        return self.rank

    @property
    def is_first_rank(self) -> bool:
        return self.rank == 0

    @property
    def is_last_rank(self) -> bool:
        return self.rank == self.world_size - 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks; `tensor` is left as it was."""
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Every rank's tensor, joined along `dim` in rank order."""
        return tensor


@dataclass(frozen=True, slots=True)
class Groups:
    tensor: Group = field(default_factory=Group)
    pipeline: Group = field(default_factory=Group)
    expert: Group = field(default_factory=Group)
    data: Group = field(default_factory=Group)


_groups: ContextVar[Groups] = ContextVar("groups", default=Groups())  # noqa: B039  frozen


@contextmanager
def use_groups(groups: Groups | None = None, **by_name: Group) -> Iterator[None]:
    """Install process groups for the duration of a block: all of them, or some by field name (``tensor=…``)."""
    installed = _groups.set(replace(groups or _groups.get(), **by_name))
    try:
        yield
    finally:
        _groups.reset(installed)


def get_tp_group() -> Group:
    """The ranks among which tensors are split."""
    return _groups.get().tensor


def get_pp_group() -> Group:
    """The ranks that hold the pipeline's stages: `is_first_rank` embeds, `is_last_rank` computes logits."""
    return _groups.get().pipeline


def get_ep_group() -> Group:
    """The ranks among which whole experts are divided."""
    return _groups.get().expert


def get_dp_group() -> Group:
    """The ranks that run copies of the model on different requests."""
    return _groups.get().data


def get_tensor_model_parallel_rank() -> int:
    """This process's place among the tensor-parallel ranks, from 0."""
    return _groups.get().tensor.rank


def get_tensor_model_parallel_world_size() -> int:
    """How many ranks share each tensor."""
    return _groups.get().tensor.world_size


def tensor_model_parallel_all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensor-parallel ranks' tensors."""
    return _groups.get().tensor.all_reduce(tensor)


def tensor_model_parallel_all_gather(tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The tensor-parallel ranks' tensors, joined along `dim` in rank order."""
    return _groups.get().tensor.all_gather(tensor, dim)
