"""The Mamba-2 mixer: a state space of every head, whose decay is one number."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.nn.linear import RowParallelLinear
from bestiary.nn.ops.scan import ssd_scan

from .base import CausalConv1d, StateLayer, UnitsColumnLinear, sharded, share_of
from .gated_norm import Mixer2RMSNormGated
from .mamba import decay_rate
from .spec import StateSpec


class MambaMixer2(StateLayer):
    """Mamba-2 (arXiv 2405.21060): heads in groups that share B and C, then a norm with a gate.

    Parameters as in checkpoints, but for ``A``, as in `MambaMixer`. Ranks divide the heads, and the groups with them;
    where there are more ranks than groups, several hold the same one. The recurrent state is fp32.
    """

    def __init__(
        self,
        hidden_size: int,
        ssm_state_size: int,
        conv_kernel_size: int,
        intermediate_size: int,
        use_conv_bias: bool,
        use_bias: bool,
        n_groups: int = 1,
        num_heads: int = 128,
        head_dim: int = 64,
        rms_norm_eps: float = 1e-5,
        activation: str = "silu",
        use_rms_norm: bool = True,
        model_config: Any = None,
        cache_config: Any = None,
        quant_config: Any = None,
        prefix: str = "",
        *,
        time_step_limit: tuple[float, float] = (0.0, inf),
    ) -> None:
        """`model_config`, `cache_config`, `quant_config` and `prefix` change nothing: names, layouts and dtypes come
        from the walk and the build scope. `time_step_limit` bounds the time steps."""
        super().__init__()
        self.head_dim, self.state_size, self.time_step_limit = head_dim, ssm_state_size, time_step_limit
        self.heads, self.groups = share_of(num_heads)[0], share_of(n_groups)[0]
        group_size = n_groups * ssm_state_size
        mixed, units = [intermediate_size, group_size, group_size], [num_heads, n_groups, n_groups]
        self.conv1d = CausalConv1d(mixed, conv_kernel_size, use_conv_bias, activation, units)
        self.in_proj = UnitsColumnLinear(
            hidden_size, [intermediate_size, *mixed, num_heads], [num_heads, *units, num_heads], bias=use_bias
        )
        self.A = sharded(num_heads, dtype=torch.float32, transform=decay_rate)
        self.D = sharded(num_heads)
        self.dt_bias = sharded(num_heads)
        self.norm = Mixer2RMSNormGated(intermediate_size, n_groups, use_rms_norm, eps=rms_norm_eps)
        self.out_proj = RowParallelLinear(intermediate_size, hidden_size, bias=use_bias, return_bias=False)
        self._dtype = torch.get_default_dtype()

    def get_state_spec(self) -> StateSpec:
        return StateSpec(
            shapes=(self.conv1d.state_shape, (self.heads, self.head_dim, self.state_size)),
            dtypes=(self._dtype, torch.float32),
        )

    def forward(self, hidden_states: Tensor, mup_vector: Tensor | None = None) -> Tensor:
        """``[tokens, hidden_size]`` → the same. `mup_vector` multiplies what comes of `in_proj` (Falcon-H1)."""
        projected = self.in_proj(hidden_states)
        if mup_vector is not None:
            projected = projected * mup_vector
        width = self.heads * self.head_dim
        gate, mixed, dt = torch.split(projected, [width, sum(self.conv1d.own), self.heads], -1)
        y = self._mix(mixed, dt)
        out: Tensor = self.out_proj(self.norm(y.to(hidden_states.dtype), gate))
        return out

    def _mix(self, mixed: Tensor, dt: Tensor) -> Tensor:
        """The convolution and the recurrence: ``[tokens, heads * head_dim]``."""
        conv_state, state = self.read_states()
        mixed, conv_state = self.conv1d(mixed, conv_state)
        x, b, c = torch.split(mixed.float(), self.conv1d.own, -1)
        x = x.reshape(-1, self.heads, self.head_dim)
        b, c = (each.reshape(-1, self.groups, self.state_size) for each in (b, c))
        dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(*self.time_step_limit)
        y, state = ssd_scan(x * dt.unsqueeze(-1), dt * self.A, b, c, state, self.metadata)
        self.write_states(conv_state, state)
        return y.addcmul(x, self.D.float().unsqueeze(-1)).flatten(-2)
