"""The Mamba mixer: a selective state space of every channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.nn.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from bestiary.nn.norm import RMSNorm
from bestiary.nn.ops.scan import selective_scan
from bestiary.nn.parallel import divide, get_tensor_model_parallel_world_size

from .base import CausalConv1d, StateLayer, sharded
from .spec import StateSpec


def decay_rate(log: Tensor) -> Tensor:
    """What layers keep of a checkpoint's ``A_log``: the rate ``A = −exp(A_log)``."""
    return -log.float().exp()


class MambaMixer(StateLayer):
    """Mamba (arXiv 2312.00752); with `use_rms_norm` time step, B and C are normalised first (Jamba, FalconMamba).

    Parameters as in checkpoints, but for ``A``, which is made of their ``A_log`` while it is loaded: a model's
    `WeightsMapper` or `load_weights` renames it. The recurrent state is fp32, as it sums over all that came.
    """

    def __init__(
        self,
        hidden_size: int,
        ssm_state_size: int,
        conv_kernel_size: int,
        intermediate_size: int,
        time_step_rank: int,
        use_conv_bias: bool,
        use_bias: bool,
        use_rms_norm: bool = False,
        rms_norm_has_weight: bool = True,
        rms_norm_eps: float = 1e-5,
        activation: str = "silu",
        is_lora_enabled: bool = False,
        model_config: Any = None,
        cache_config: Any = None,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        """The last five change nothing: names, layouts and dtypes come from the walk and the build scope."""
        super().__init__()
        self.sizes = [time_step_rank, ssm_state_size, ssm_state_size]
        self.channels = divide(intermediate_size, get_tensor_model_parallel_world_size(), "intermediate_size")
        self.conv1d = CausalConv1d([intermediate_size], conv_kernel_size, use_conv_bias, activation)
        self.in_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size] * 2, bias=use_bias, return_bias=False
        )
        self.x_proj = RowParallelLinear(intermediate_size, sum(self.sizes), bias=False, return_bias=False)
        self.dt_proj = ColumnParallelLinear(time_step_rank, intermediate_size, bias=True, skip_bias_add=True)
        self.A = sharded(intermediate_size, ssm_state_size, dtype=torch.float32, transform=decay_rate)
        self.D = sharded(intermediate_size)
        self.out_proj = RowParallelLinear(intermediate_size, hidden_size, bias=use_bias, return_bias=False)
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
            RMSNorm(size, rms_norm_eps, has_weight=rms_norm_has_weight) if use_rms_norm else None for size in self.sizes
        )
        self._dtype = torch.get_default_dtype()

    def get_state_spec(self) -> StateSpec:
        return StateSpec(
            shapes=(self.conv1d.state_shape, (self.channels, self.sizes[1])), dtypes=(self._dtype, torch.float32)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` → ``[tokens, hidden_size]``."""
        x, gate = self.in_proj(hidden_states).chunk(2, -1)
        conv_state, state = self.read_states()
        x, conv_state = self.conv1d(x, conv_state)
        dt, b, c = self._selected(x)
        y, state = selective_scan(x, dt, self.A, b, c, state, self.metadata)
        self.write_states(conv_state, state)
        y = (y + x.float() * self.D.float()) * F.silu(gate.float())
        out: Tensor = self.out_proj(y.to(hidden_states.dtype))
        return out

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the input chooses: time steps ``[tokens, channels]``, and what to write and read ``[tokens, n]``."""
        dt, b, c = self.x_proj(x).split(self.sizes, -1)
        if self.dt_layernorm is not None and self.b_layernorm is not None and self.c_layernorm is not None:
            dt, b, c = self.dt_layernorm(dt), self.b_layernorm(b), self.c_layernorm(c)
        dt, bias = self.dt_proj(dt)
        return F.softplus(dt.float() + bias.float()), b, c
