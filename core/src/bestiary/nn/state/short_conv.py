"""The gated short convolution of LFM2."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.nn.linear import MergedColumnParallelLinear, RowParallelLinear

from .base import CausalConv1d, StateLayer
from .spec import StateSpec


class ShortConv(StateLayer):
    """``out_proj(c · conv(b · x))`` where ``b, c, x = in_proj(hidden)``: all that LFM2 keeps is the last inputs."""

    def __init__(self, dim: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.conv = CausalConv1d([dim], kernel_size, bias)
        self.in_proj = MergedColumnParallelLinear(dim, [dim] * 3, bias=bias, return_bias=False)
        self.out_proj = RowParallelLinear(dim, dim, bias=bias, return_bias=False)
        self._dtype = torch.get_default_dtype()

    def get_state_spec(self) -> StateSpec:
        return StateSpec(shapes=(self.conv.state_shape,), dtypes=(self._dtype,))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, dim]`` → ``[tokens, dim]``."""
        b, c, x = self.in_proj(hidden_states).chunk(3, -1)
        (before,) = self.read_states()
        mixed, after = self.conv(b * x, before)
        self.write_states(after)
        out: Tensor = self.out_proj(c * mixed)
        return out
