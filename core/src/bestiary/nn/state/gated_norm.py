"""RMS norms with a gate, over a whole width or over groups of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError
from bestiary.nn.ops.norm import rms_norm
from bestiary.nn.parallel import (
    divide,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)

from .base import sharded

_GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "swish": F.silu, "sigmoid": torch.sigmoid}


class RMSNormGated(nn.Module):
    """``rms_norm(x) · act(gate)``, or ``rms_norm(x · act(gate))`` unless `norm_before_gate`; without a gate, the norm.

    Means are over `group_size` elements, or over all. The whole layer is on every rank.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "silu",
    ) -> None:
        """`device` changes nothing: parameters are made where the model is placed."""
        super().__init__()
        if activation not in _GATES:
            raise ConfigError("unknown gate of a norm", field="activation", value=activation, limit=", ".join(_GATES))
        self.eps, self.group_size, self.norm_before_gate, self.activation = (
            eps,
            group_size,
            norm_before_gate,
            activation,
        )
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype, device="meta"), requires_grad=False)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """`x` and the gate `z`, ``[…, hidden_size]``."""
        wide = x.float()
        gate = None if z is None else _GATES[self.activation](z.float())
        if gate is not None and not self.norm_before_gate:
            wide = wide * gate
        normed = group_rms_norm(wide, self.group_size or x.shape[-1], self.eps).to(x.dtype) * self.weight
        if gate is not None and self.norm_before_gate:
            normed = normed * gate
        return normed.to(x.dtype)


class ShardedGroupRMSNorm(nn.Module):
    """An RMS norm of each of the groups that a width consists of, the width being split among ranks.

    Where a group lies on several ranks they join what they have first.

    Attributes:
        weight: this rank's part; None for a norm that is left out.
    """

    def __init__(self, full_size: int, groups: int, eps: float, *, has_weight: bool = True) -> None:
        super().__init__()
        self.group_size = divide(full_size, groups, "hidden size of a norm by groups")
        self.width = divide(full_size, get_tensor_model_parallel_world_size(), "hidden size of a norm by groups")
        self.eps = eps
        self.weight = sharded(full_size) if has_weight else None

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, width of this rank]`` → the same."""
        if self.weight is None:
            return x
        wide = x.float()
        if self.width % self.group_size == 0:
            normed = group_rms_norm(wide, self.group_size, self.eps)
        else:
            whole = group_rms_norm(tensor_model_parallel_all_gather(wide), self.group_size, self.eps)
            normed = whole.narrow(-1, get_tensor_model_parallel_rank() * self.width, self.width)
        return (normed * self.weight.float()).to(x.dtype)


class Mixer2RMSNormGated(ShardedGroupRMSNorm):
    """Mamba-2's: ``weight · rms_norm(x · silu(gate))``; without `use_rms_norm` only the gate is left."""

    def __init__(self, full_hidden_size: int, full_n_groups: int, use_rms_norm: bool = True, eps: float = 1e-6) -> None:
        super().__init__(full_hidden_size, full_n_groups, eps, has_weight=use_rms_norm)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """`x` and `gate`: ``[tokens, width of this rank]``."""
        return super().forward(x.float() * F.silu(gate.float())).to(x.dtype)


def group_rms_norm(x: Tensor, group_size: int, eps: float) -> Tensor:
    """The RMS norm of every run of `group_size` elements of the last dimension."""
    return rms_norm(x.reshape(*x.shape[:-1], -1, group_size), None, eps).flatten(-2)
