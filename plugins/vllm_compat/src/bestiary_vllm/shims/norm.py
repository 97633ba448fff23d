"""Norms under the names of their versions in plain torch, and those that single families of models brought along."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import nn

import bestiary.nn as core
from bestiary.nn import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size, set_weight_attrs
from bestiary.nn.parallel import tensor_model_parallel_all_reduce
from bestiary.nn.weights import default_weight_loader


class RMSNorm(core.RMSNorm):
    forward_native = core.RMSNorm.forward


class GemmaRMSNorm(core.GemmaRMSNorm):
    forward_native = core.GemmaRMSNorm.forward


class PolyNorm(nn.Module):
    """``w[0] norm(x³) + w[1] norm(x²) + w[2] norm(x) + bias`` with norms by the root mean square (arXiv 2411.03884)."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.variance_epsilon = eps
        self.weight = nn.Parameter(torch.empty(3), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        powers = torch.stack([exact**3, exact**2, exact], -1)
        normed = powers * torch.rsqrt(powers.pow(2).mean(-2, keepdim=True) + self.variance_epsilon)
        return (normed @ self.weight.float() + self.bias.float()).to(x.dtype)


class MiniMaxText01RMSNormTP(nn.Module):
    """RMS norm over a width that is divided among tensor-parallel ranks (queries or keys of all heads together)."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        *,
        weight_shard_world_size: int | None = None,
        weight_shard_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.tp_size = get_tensor_model_parallel_world_size()
        self.shards = weight_shard_world_size or self.tp_size
        self.shard = get_tensor_model_parallel_rank() if weight_shard_rank is None else weight_shard_rank
        self.variance_epsilon = eps
        self.weight = nn.Parameter(torch.empty(hidden_size // self.shards), requires_grad=False)
        set_weight_attrs(self.weight, {"weight_loader": self.weight_loader})

    def weight_loader(self, param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        default_weight_loader(param, loaded_weight.chunk(self.shards)[self.shard])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[tokens, width of this rank]`` → the same, the mean square being that of all ranks."""
        exact = x.float()
        mean = exact.pow(2).mean(-1, keepdim=True)
        if self.tp_size > 1:
            mean = tensor_model_parallel_all_reduce(mean) / self.tp_size
        return (exact * torch.rsqrt(mean + self.variance_epsilon) * self.weight.float()).to(x.dtype)

    @staticmethod
    def forward_qk(
        q_norm: MiniMaxText01RMSNormTP, k_norm: MiniMaxText01RMSNormTP, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q_norm(q), k_norm(k)

    @staticmethod
    def forward_qkv(
        q_norm: MiniMaxText01RMSNormTP,
        k_norm: MiniMaxText01RMSNormTP,
        qkv: torch.Tensor,
        q_size: int,
        kv_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A fused product taken apart, its queries and keys normed."""
        q, k, v = torch.split(qkv, [q_size, kv_size, kv_size], dim=-1)
        return q_norm(q), k_norm(k), v


class QkNormPolicy(Enum):
    """Whether queries and keys are normed before or after they are rotated."""

    NO_NORM = 0
    ROPE_THEN_NORM = 1
    NORM_THEN_ROPE = 2


class HpcRopeNorm:
    """A fused kernel that is nowhere supported, which model files ask for before they use it."""

    @staticmethod
    def support(*shape: Any, **options: Any) -> bool:
        return False
