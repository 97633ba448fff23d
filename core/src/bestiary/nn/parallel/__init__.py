"""Process groups and the arithmetic of dividing a model among ranks."""

from .partition import divide, noting_refusals, pipeline_range, refuse, split_tensor_along_last_dim
from .state import (
    Group,
    Groups,
    get_dp_group,
    get_ep_group,
    get_pp_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    get_tp_group,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
    use_groups,
)

__all__ = [
    "Group",
    "Groups",
    "divide",
    "get_dp_group",
    "get_ep_group",
    "get_pp_group",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "get_tp_group",
    "noting_refusals",
    "pipeline_range",
    "refuse",
    "split_tensor_along_last_dim",
    "tensor_model_parallel_all_gather",
    "tensor_model_parallel_all_reduce",
    "use_groups",
]
