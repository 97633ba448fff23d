"""Groups of ranks that only vLLM has."""

from __future__ import annotations

import torch

from bestiary.nn import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from bestiary.nn.parallel import Group, tensor_model_parallel_all_reduce
from bestiary.nn.parallel import divide as core_divide


def get_pcp_group() -> Group:
    """Prefill is never divided among ranks by context: a group of one."""
    return Group()


def tensor_model_parallel_reduce_scatter(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum over ranks, of which each keeps its own equal part along `dim`."""
    size = get_tensor_model_parallel_world_size()
    if size == 1:
        return input_
    return tensor_model_parallel_all_reduce(input_).chunk(size, dim)[get_tensor_model_parallel_rank()]


def model_parallel_is_initialized() -> bool:
    return True


def divide(numerator: int, denominator: int) -> int:
    """The quotient of two numbers that divide evenly. Raises `UsageError` where they do not."""
    return core_divide(numerator, denominator, "size")
