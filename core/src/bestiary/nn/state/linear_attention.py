"""Linear attention whose state fades at a rate of each head's own, that no input changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.nn.attention.alibi import get_alibi_slopes
from bestiary.nn.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from bestiary.nn.norm import RMSNorm
from bestiary.nn.ops.scan import ssd_scan
from bestiary.nn.parallel import divide, get_tensor_model_parallel_world_size
from bestiary.nn.rotary import get_rope

from .base import StateLayer
from .gated_norm import ShardedGroupRMSNorm
from .spec import StateSpec


class FadingLinearAttention(StateLayer):
    """``s_t = exp(−rate) s_{t−1} + v_t k_tᵀ``, ``o_t = s_t q_t`` (lightning attention, arXiv 2401.04658).

    The rates are ALiBi's slopes, less from layer to layer. The state is fp32 ``[heads, head_dim, head_dim]``.

    Attributes:
        heads: this rank's.
    """

    rates: Tensor

    def __init__(self, num_heads: int, head_dim: int, layer_idx: int, num_layers: int) -> None:
        super().__init__()
        self.heads = divide(num_heads, get_tensor_model_parallel_world_size(), "num_attention_heads")
        self.head_dim = head_dim
        fade = 1 - layer_idx / max(1, num_layers - 1) + 1e-5
        rates = torch.tensor(get_alibi_slopes(num_heads), dtype=torch.float32) * fade
        self.register_buffer("rates", rates, persistent=False)

    def get_state_spec(self) -> StateSpec:
        return StateSpec(shapes=((self.heads, self.head_dim, self.head_dim),), dtypes=(torch.float32,))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[tokens, heads, head_dim]`` each → the same, fp32."""
        (state,) = self.read_states()
        out, state = ssd_scan(v, -self.rates.expand(v.shape[0], -1), k, q, state, self.metadata)
        self.write_states(state)
        return out


class LightningAttention(FadingLinearAttention):
    """That of MiniMax-Text-01: ``qkv_proj`` by heads, then SiLU; a norm over all heads; a gate of the input."""

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, layer_idx: int, num_layers: int, *, eps: float = 1e-5
    ) -> None:
        super().__init__(num_heads, head_dim, layer_idx, num_layers)
        width = num_heads * head_dim
        self.qkv_proj = ColumnParallelLinear(hidden_size, 3 * width, bias=False, return_bias=False)
        self.output_gate = ColumnParallelLinear(hidden_size, width, bias=False, return_bias=False)
        self.norm = ShardedGroupRMSNorm(width, 1, eps)
        self.out_proj = RowParallelLinear(width, hidden_size, bias=False, return_bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` → ``[tokens, hidden_size]``."""
        qkv = F.silu(self.qkv_proj(hidden_states).float()).view(-1, self.heads, 3 * self.head_dim)
        out = self.norm(self.attend(*torch.split(qkv, self.head_dim, -1)).flatten(-2).to(hidden_states.dtype))
        answer: Tensor = self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * out)
        return answer


class BailingMoELinearAttention(FadingLinearAttention):
    """That of Ling and Ring linear: ``query_key_value``, norms of heads, rotation, a norm by groups of heads, a gate.

    Everything between the projections is fp32.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        layer_idx: int,
        num_layers: int,
        *,
        max_position: int,
        rope_parameters: Mapping[str, Any] | None,
        rms_norm_eps: float = 1e-5,
        group_norm_size: int = 1,
        qkv_bias: bool = False,
        bias: bool = False,
        use_qk_norm: bool = False,
        use_rope: bool = True,
        use_silu: bool = False,
    ) -> None:
        super().__init__(num_heads, head_dim, layer_idx, num_layers)
        width = num_heads * head_dim
        self.use_silu = use_silu
        self.query_key_value = QKVParallelLinear(hidden_size, head_dim, num_heads, bias=qkv_bias, return_bias=False)
        self.query_layernorm = RMSNorm(head_dim, rms_norm_eps) if use_qk_norm else None
        self.key_layernorm = RMSNorm(head_dim, rms_norm_eps) if use_qk_norm else None
        self.rotary_emb = (
            get_rope(head_dim, max_position=max_position, rope_parameters=rope_parameters) if use_rope else None
        )
        self.g_proj = ColumnParallelLinear(hidden_size, width, bias=False, return_bias=False)
        self.g_norm = ShardedGroupRMSNorm(width, group_norm_size, rms_norm_eps)
        self.dense = RowParallelLinear(width, hidden_size, bias=bias, return_bias=False)

    def forward(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        """``[tokens, hidden_size]`` and ``[tokens]`` → ``[tokens, hidden_size]``."""
        qkv = self.query_key_value(hidden_states).float()
        q, k, v = torch.split(F.silu(qkv) if self.use_silu else qkv, self.query_key_value.split_sizes, -1)
        q, k, v = (each.reshape(-1, self.heads, self.head_dim) for each in (q, k, v))
        if self.query_layernorm is not None and self.key_layernorm is not None:
            q, k = self.query_layernorm(q), self.key_layernorm(k)
        if self.rotary_emb is not None:
            q, k = (each.view_as(v) for each in self.rotary_emb(positions, q.flatten(-2), k.flatten(-2)))
        out = self.g_norm(self.attend(q * self.head_dim**-0.5, k, v).flatten(-2))
        gated = out * torch.sigmoid(self.g_proj(hidden_states).float())
        answer: Tensor = self.dense(gated.to(hidden_states.dtype))
        return answer
