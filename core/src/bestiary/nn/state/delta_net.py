"""The gated delta net: linear attention whose state forgets, and is corrected instead of added to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.nn.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from bestiary.nn.ops.delta import gated_delta_rule
from bestiary.nn.parallel import divide, get_tensor_model_parallel_world_size

from .base import CausalConv1d, StateLayer, sharded
from .gated_norm import RMSNormGated
from .spec import StateSpec


class GatedDeltaNet(StateLayer):
    """What gated delta nets (arXiv 2412.06464) share; how inputs are projected is each one's own.

    Heads of keys serve ``num_v_heads / num_k_heads`` consecutive heads of values each. ``conv1d`` runs over queries,
    keys and values side by side. The recurrent state is fp32 ``[heads, head_k_dim, head_v_dim]``.

    Attributes:
        k_heads, v_heads: this rank's. key_dim, value_dim: this rank's widths.
    """

    def __init__(
        self,
        num_k_heads: int,
        num_v_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_kernel_size: int,
        *,
        activation: str = "silu",
        beta_scale: float = 1.0,
        rates: int | None = None,
    ) -> None:
        """`beta_scale` 2 lets the state's eigenvalues be negative (arXiv 2411.12537). `rates`: how many biases of rates
        there are; one a head of values if None."""
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        self.k_heads = divide(num_k_heads, ranks, "linear_num_key_heads")
        self.v_heads = divide(num_v_heads, ranks, "linear_num_value_heads")
        self.head_k_dim, self.head_v_dim, self.beta_scale = head_k_dim, head_v_dim, beta_scale
        self.key_dim, self.value_dim = self.k_heads * head_k_dim, self.v_heads * head_v_dim
        keys, values = num_k_heads * head_k_dim, num_v_heads * head_v_dim
        self.conv1d = CausalConv1d([keys, keys, values], conv_kernel_size, False, activation)
        self.dt_bias = sharded(rates or num_v_heads)
        self.A_log = sharded(num_v_heads, dtype=torch.float32)
        self._dtype = torch.get_default_dtype()

    def get_state_spec(self) -> StateSpec:
        return StateSpec(
            shapes=(self.conv1d.state_shape, (self.v_heads, self.head_k_dim, self.head_v_dim)),
            dtypes=(self._dtype, torch.float32),
        )

    def attend(self, qkv: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """The convolution and the recurrence.

        Args:
            qkv: ``[tokens, 2 key_dim + value_dim]``. b, a: ``[tokens, v_heads]``, what says how much is corrected, and
                how much is forgotten.

        Returns:
            ``[tokens, v_heads, head_v_dim]``.
        """
        decay = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        return self.recur(qkv, b.float().sigmoid() * self.beta_scale, decay.unsqueeze(-1))

    def recur(self, qkv: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
        """As `attend`, of how much is corrected, and of logarithms of what is kept (of all, or of each channel)."""
        conv_state, state = self.read_states()
        mixed, conv_state = self.conv1d(qkv, conv_state)
        q, k, v = mixed.float().split([self.key_dim, self.key_dim, self.value_dim], -1)
        q, k = (unit(each.reshape(-1, self.k_heads, self.head_k_dim)) for each in (q, k))
        v = v.reshape(-1, self.v_heads, self.head_v_dim)
        out, state = gated_delta_rule(q * self.head_k_dim**-0.5, k, v, decay, beta, state, self.metadata)
        self.write_states(conv_state, state)
        return out.to(qkv.dtype)


class GatedDeltaNetAttention(GatedDeltaNet):
    """That of Qwen3-Next and Qwen3.5: ``in_proj_qkvz``, ``in_proj_ba``, a norm of each head with a gate, ``out_proj``.

    With `gqa_interleaved_layout` (Qwen3-Next) both go by heads of keys, each with its queries, keys, values and gates,
    or its b's and a's; otherwise (Qwen3.5) q, k, v and z are parts of one projection, as are b and a.
    """

    def __init__(
        self,
        hidden_size: int,
        num_k_heads: int,
        num_v_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_kernel_size: int,
        *,
        rms_norm_eps: float = 1e-6,
        activation: str = "silu",
        output_gate_type: str = "silu",
        gqa_interleaved_layout: bool = False,
        reduce_results: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            num_k_heads, num_v_heads, head_k_dim, head_v_dim, conv_kernel_size, activation=activation, **options
        )
        self.gqa_interleaved_layout = gqa_interleaved_layout
        keys, values = num_k_heads * head_k_dim, num_v_heads * head_v_dim
        qkvz, ba = [keys, keys, values, values], [num_v_heads, num_v_heads]
        if gqa_interleaved_layout:
            qkvz, ba = [sum(qkvz)], [sum(ba)]
        self.in_proj_qkvz = MergedColumnParallelLinear(hidden_size, qkvz, bias=False, return_bias=False)
        self.in_proj_ba = MergedColumnParallelLinear(hidden_size, ba, bias=False, return_bias=False)
        self.norm = RMSNormGated(head_v_dim, rms_norm_eps, norm_before_gate=True, activation=output_gate_type)
        self.out_proj = RowParallelLinear(
            values, hidden_size, bias=False, reduce_results=reduce_results, return_bias=False
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` → ``[tokens, hidden_size]``."""
        qkv, z, b, a = self._projected(hidden_states)
        out = self.norm(self.attend(qkv, b, a), z.reshape(-1, self.v_heads, self.head_v_dim))
        answer: Tensor = self.out_proj(out.flatten(-2))
        return answer

    def _projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values side by side; gates; b; a."""
        qkvz, ba = self.in_proj_qkvz(hidden_states), self.in_proj_ba(hidden_states)
        if not self.gqa_interleaved_layout:
            qkv, z = qkvz.split([2 * self.key_dim + self.value_dim, self.value_dim], -1)
            b, a = ba.chunk(2, -1)
            return qkv, z, b, a
        share = self.v_heads // self.k_heads
        values = share * self.head_v_dim
        by_head = qkvz.reshape(qkvz.shape[0], self.k_heads, -1)
        *qkv, z = by_head.split([self.head_k_dim, self.head_k_dim, values, values], -1)
        b, a = ba.reshape(ba.shape[0], self.k_heads, -1).split([share, share], -1)
        return torch.cat([each.flatten(-2) for each in qkv], -1), z.flatten(-2), b.flatten(-2), a.flatten(-2)


class OlmoHybridGatedDeltaNetAttention(GatedDeltaNet):
    """That of OLMo Hybrid: one projection of q, k, v and gate, those of b and a by themselves, ``o_norm``, ``o_proj``.

    A checkpoint's convolutions of q, k and v are parts 0, 1 and 2 of ``conv1d``.
    """

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "in_proj_qkvg": ["q_proj", "k_proj", "v_proj", "g_proj"],
        "conv1d": ["q_conv1d", "k_conv1d", "v_conv1d"],
    }

    def __init__(
        self,
        hidden_size: int,
        num_k_heads: int,
        num_v_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_kernel_size: int,
        *,
        rms_norm_eps: float = 1e-5,
        allow_neg_eigval: bool = False,
    ) -> None:
        scale = 2.0 if allow_neg_eigval else 1.0
        super().__init__(num_k_heads, num_v_heads, head_k_dim, head_v_dim, conv_kernel_size, beta_scale=scale)
        keys, values = num_k_heads * head_k_dim, num_v_heads * head_v_dim
        self.in_proj_qkvg = MergedColumnParallelLinear(
            hidden_size, [keys, keys, values, values], bias=False, return_bias=False
        )
        self.b_proj = ColumnParallelLinear(hidden_size, num_v_heads, bias=False, return_bias=False)
        self.a_proj = ColumnParallelLinear(hidden_size, num_v_heads, bias=False, return_bias=False)
        self.o_norm = RMSNormGated(head_v_dim, rms_norm_eps, norm_before_gate=True)
        self.o_proj = RowParallelLinear(values, hidden_size, bias=False, return_bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` → ``[tokens, hidden_size]``."""
        qkv, gate = self.in_proj_qkvg(hidden_states).split([2 * self.key_dim + self.value_dim, self.value_dim], -1)
        out = self.attend(qkv, self.b_proj(hidden_states), self.a_proj(hidden_states))
        normed = self.o_norm(out, gate.reshape(-1, self.v_heads, self.head_v_dim))
        answer: Tensor = self.o_proj(normed.flatten(-2))
        return answer


def unit(x: Tensor) -> Tensor:
    """``x / sqrt(Σ x² + 1e-6)`` over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
