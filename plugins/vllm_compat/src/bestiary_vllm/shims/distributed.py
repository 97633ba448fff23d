"""Groups of ranks as vLLM has them: core's, each with torch's group beside it to be asked for its size and rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import bestiary.nn as core
from bestiary.nn.parallel import Group
from bestiary.nn.parallel import divide as core_divide


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """What model files ask torch's process group."""

    group: Group

    def size(self) -> int:
        return self.group.world_size

    def rank(self) -> int:
        return self.group.rank


class GroupView:
    """A group of core's; `device_group` and `cpu_group` are for questions, not for collectives of torch's."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.device_group = self.cpu_group = DeviceGroup(group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The sum over ranks, of which each keeps its own equal part along `dim`."""
        return self._group.all_reduce(tensor).chunk(self._group.world_size, dim)[self._group.rank]


def get_tp_group() -> GroupView:
    return GroupView(core.get_tp_group())


def get_pp_group() -> GroupView:
    return GroupView(core.get_pp_group())


def get_ep_group() -> GroupView:
    return GroupView(core.get_ep_group())


def get_dp_group() -> GroupView:
    return GroupView(core.get_dp_group())


def get_pcp_group() -> GroupView:
    """Prefill is never divided among ranks by context: a group of one."""
    return GroupView(Group())


def tensor_model_parallel_reduce_scatter(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum over ranks, of which each keeps its own equal part along `dim`."""
    return get_tp_group().reduce_scatter(input_, dim)


def model_parallel_is_initialized() -> bool:
    return True


def divide(numerator: int, denominator: int) -> int:
    """The quotient of two numbers that divide evenly. Raises `UsageError` where they do not."""
    return core_divide(numerator, denominator, "size")
