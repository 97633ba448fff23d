"""What layers with a state share: parameters split among ranks, the convolution before a recurrence, the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, UsageError
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.context import get_forward_context
from bestiary.nn.linear import MergedColumnParallelLinear
from bestiary.nn.linear_base import refuse_other_rows
from bestiary.nn.ops.conv import causal_conv1d
from bestiary.nn.parallel import (
    divide,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    refuse,
)
from bestiary.nn.weights.fill import ShardId, count_use, fill, set_weight_attrs

from .spec import StateSpec, read_states, write_states


class StateLayer(nn.Module, ABC):
    """A layer that keeps something of a sequence whose size does not grow with it.

    Attributes:
        layer_name: the full name in the model, under which the context keeps the states; set when it is placed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer_name = ""

    @abstractmethod
    def get_state_spec(self) -> StateSpec:
        """One sequence's state on this rank."""

    def read_states(self) -> tuple[Tensor, ...]:
        """The sequences' states before the running step; see `spec.read_states`."""
        return read_states(self.layer_name)

    def write_states(self, *tensors: Tensor) -> None:
        """Keep the sequences' states after the running step."""
        write_states(self.layer_name, tensors)

    @property
    def metadata(self) -> AttentionMetadata:
        """How the running step's tokens fall into sequences."""
        return get_forward_context().attention


def sharded(
    size: int, *more: int, dtype: torch.dtype | None = None, transform: Callable[[Tensor], Tensor] | None = None
) -> nn.Parameter:
    """A parameter ``[size / ranks, *more]``, each rank its run of rows of the checkpoint's, put through `transform`."""
    ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    rows = divide(size, ranks, "state heads or channels")
    made = nn.Parameter(torch.empty(rows, *more, dtype=dtype, device="meta"), requires_grad=False)

    def load(param: Tensor, loaded_weight: Tensor) -> None:
        count_use(loaded_weight)
        flat = loaded_weight.reshape(loaded_weight.numel() // max(1, made[0].numel()), *more)
        refuse_other_rows(flat, size, 0)
        own = flat.narrow(0, rank * rows, rows)
        fill(param, param.data, own if transform is None else transform(own))

    set_weight_attrs(made, {"weight_loader": load})
    return made


def share_of(units: int) -> tuple[int, int]:
    """Of `units` that are divided among ranks: how many this rank has, and which run of so many.

    Where there are more ranks than units, each unit is held by several ranks, as key/value heads are.
    """
    ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    if units >= ranks:
        return divide(units, ranks, "n_groups"), rank
    if ranks % units:
        refuse(
            UsageError(
                f"{units} groups cannot be copied evenly to {ranks} ranks",
                field="n_groups", value=units, limit=f"a divisor of {ranks}",
            )
        )  # fmt: skip
    return 1, rank * units // ranks


class UnitsColumnLinear(MergedColumnParallelLinear):
    """A merged projection whose parts consist of units (heads, groups) that several ranks may share."""

    def __init__(self, input_size: int, output_sizes: Sequence[int], units: Sequence[int], *, bias: bool) -> None:
        self.units = list(units)
        super().__init__(input_size, output_sizes, bias=bias, return_bias=False)

    def partition_sizes(self, sizes: Sequence[int]) -> list[int]:
        return [size // units * share_of(units)[0] for size, units in zip(sizes, self.units, strict=True)]

    def rank_of_shard(self, index: int) -> int:
        return share_of(self.units[index])[1]


class CausalConv1d(nn.Module):
    """A depthwise convolution over each sequence of the running step; not quantized.

    The parts that its channels consist of are divided among ranks one by one, each by its `units`. Parameters as in
    checkpoints: ``weight`` ``[channels, 1, kernel_size]`` and ``bias``, whole or part by part under shard ids.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kernel_size: int,
        bias: bool,
        activation: str | None = None,
        units: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if activation not in (None, "silu", "swish"):
            raise ConfigError(
                "unsupported layer: a causal convolution with this activation",
                code="UNSUPPORTED_LAYER", field="activation", value=activation, limit="silu, swish, None",
            )  # fmt: skip
        self.sizes, self.kernel_size, self.silu = list(sizes), kernel_size, activation is not None
        self.shares = [share_of(each) for each in units or sizes]
        self.own = [
            size // all_ * mine for size, all_, (mine, _) in zip(sizes, units or sizes, self.shares, strict=True)
        ]
        self.weight = self._parameter(sum(self.own), 1, kernel_size)
        self.bias = self._parameter(sum(self.own)) if bias else None

    @property
    def state_shape(self) -> tuple[int, int]:
        return sum(self.own), self.kernel_size - 1

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """``[tokens, channels]`` and the states before → the same after it."""
        metadata = get_forward_context().attention
        return causal_conv1d(x, self.weight.squeeze(1), self.bias, state, metadata, self.silu)

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor, shard_id: ShardId = None) -> None:
        """Copy this rank's channels of all parts, or of one."""
        indices = range(len(self.sizes)) if shard_id is None else [int(str(shard_id))]
        count_use(loaded_weight)
        refuse_other_rows(loaded_weight, sum(self.sizes[index] for index in indices), 0)
        at = 0
        for index in indices:
            size, start = self.own[index], at + self.shares[index][1] * self.own[index]
            target = param.data.narrow(0, sum(self.own[:index]), size)
            fill(param, target, loaded_weight.narrow(0, start, size))
            at += self.sizes[index]

    def _parameter(self, *shape: int) -> nn.Parameter:
        made = nn.Parameter(torch.empty(*shape, device="meta"), requires_grad=False)
        set_weight_attrs(made, {"weight_loader": self.weight_loader})
        return made

    def extra_repr(self) -> str:
        return f"channels={self.own}, kernel_size={self.kernel_size}, silu={self.silu}, bias={self.bias is not None}"
