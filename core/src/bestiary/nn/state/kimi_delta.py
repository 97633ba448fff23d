"""Kimi delta attention: a gated delta net in which each channel of a key forgets at its own rate."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.nn.linear import ColumnParallelLinear, MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear

from .delta_net import GatedDeltaNet
from .gated_norm import RMSNormGated


class KimiDeltaAttention(GatedDeltaNet):
    """That of Kimi Linear (arXiv 2510.26692); names are the checkpoint's.

    The rate comes of two narrow projections (``f_a_proj``, ``f_b_proj``), as does the output's gate. A rate is
    ``−exp(A_log) softplus(f + dt_bias)``; with `gate_lower_bound` it is ``gate_lower_bound · sigmoid(exp(A_log)(f +
    dt_bias))``, which cannot fall below the bound.
    """

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "conv1d": ["q_conv1d", "k_conv1d", "v_conv1d"],
    }

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        conv_kernel_size: int,
        *,
        rms_norm_eps: float = 1e-6,
        activation: str = "silu",
        gate_lower_bound: float | None = None,
    ) -> None:
        width = num_heads * head_dim
        super().__init__(num_heads, num_heads, head_dim, head_dim, conv_kernel_size, activation=activation, rates=width)
        self.gate_lower_bound = gate_lower_bound
        self.qkv_proj = MergedColumnParallelLinear(hidden_size, [width] * 3, bias=False, return_bias=False)
        self.b_proj = ColumnParallelLinear(hidden_size, num_heads, bias=False, return_bias=False)
        self.f_a_proj = ReplicatedLinear(hidden_size, head_dim, bias=False, return_bias=False)
        self.f_b_proj = ColumnParallelLinear(head_dim, width, bias=False, return_bias=False)
        self.g_a_proj = ReplicatedLinear(hidden_size, head_dim, bias=False, return_bias=False)
        self.g_b_proj = ColumnParallelLinear(head_dim, width, bias=False, return_bias=False)
        self.o_norm = RMSNormGated(head_dim, rms_norm_eps, norm_before_gate=True, activation="sigmoid")
        self.o_proj = RowParallelLinear(width, hidden_size, bias=False, return_bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` → ``[tokens, hidden_size]``."""
        beta = self.b_proj(hidden_states).float().sigmoid()
        rates = self.f_b_proj(self.f_a_proj(hidden_states)).float() + self.dt_bias.float()
        decay = self._decay(rates.view(-1, self.k_heads, self.head_k_dim))
        out = self.recur(self.qkv_proj(hidden_states), beta, decay)
        gate = self.g_b_proj(self.g_a_proj(hidden_states)).view_as(out)
        answer: Tensor = self.o_proj(self.o_norm(out, gate).flatten(-2))
        return answer

    def _decay(self, rates: Tensor) -> Tensor:
        scale = self.A_log.float().exp().unsqueeze(-1)
        if self.gate_lower_bound is None:
            return -scale * F.softplus(rates)
        return self.gate_lower_bound * torch.sigmoid(scale * rates)
