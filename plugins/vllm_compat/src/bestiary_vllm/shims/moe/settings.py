"""vLLM's keyword arguments of experts, as core's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bestiary.nn.activation import SwigluOAIAndMul, SwigluStepAndMul
from bestiary.nn.ops.moe import UNGATED
from bestiary.nn.parallel import get_ep_group, get_tp_group

_IGNORED = (
    "quant_config", "tp_size", "dp_size", "ep_size", "pcp_size", "enable_eplb", "is_sequence_parallel", "skip_padding",
    "router_logits_dtype", "intermediate_pad", "n_shared_experts", "fuse_shared_experts", "shared_expert_prefix",
)  # fmt: skip
"""What decides how vLLM computes, and not what: the layout of ranks, kernels, and buffers."""


def experts_settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Keyword arguments of core's `FusedMoE`, and whether stacked checkpoints are transposed."""
    settings = {name: value for name, value in options.items() if name not in _IGNORED}
    limit, alpha, beta = (settings.pop(f"swiglu_{name}", None) for name in ("limit", "alpha", "beta"))
    activation = str(settings.pop("activation", "silu"))
    if not settings.pop("is_act_and_mul", True):
        activation = activation_without_mul(activation)
    settings["activation"] = activation_of(activation, limit, alpha, beta)
    transposed = bool(settings.pop("is_fused_checkpoint_transposed", False))
    names: Sequence[str | None] | None = settings.pop("ckpt_names", None)
    if names is not None:
        gate, down, up = names
        settings["ckpt_names"] = (gate or up, down, up or gate)
    return settings, transposed


def activation_of(
    name: str, limit: float | None = None, alpha: float | None = None, beta: float | None = None
) -> str | Callable[[torch.Tensor], torch.Tensor]:
    """Core's name of an activation, or a function of an expert's first product, gates before ups unless it is told
    to be otherwise by the activation's own definition."""
    if name in UNGATED:
        return name
    if name in ("gelu_pytorch_tanh", "gelu_tanh"):
        return "gelu_tanh"
    if name == "swigluoai":
        return SwigluOAIAndMul(1.702 if alpha is None else alpha, 7.0 if limit is None else limit)
    if name == "swigluoai_uninterleave":
        return partial(
            _clamped_silu,
            limit=limit or 7.0,
            alpha=1.702 if alpha is None else alpha,
            beta=1.0 if beta is None else beta,
        )
    if name == "swiglustep":
        return SwigluStepAndMul(7.0 if limit is None else limit)
    if name == "relu2":
        return _gated_relu2
    if limit is not None:
        return partial(_clamped_silu, limit=limit, alpha=alpha, beta=beta)
    return name


def activation_without_mul(activation: str) -> str:
    """The name of an activation of experts without a gate."""
    return activation if activation.endswith("_no_mul") else f"{activation}_no_mul"


def _gated_relu2(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.relu(gate).square() * up


def _clamped_silu(x: torch.Tensor, limit: float, alpha: float | None = None, beta: float | None = None) -> torch.Tensor:
    """``gate' * sigmoid(alpha * gate') * (up' + beta)`` of gates and ups clamped by `limit`."""
    gate, up = x.chunk(2, -1)
    gate, up = gate.clamp_max(limit), up.clamp(-limit, limit)
    inner = F.silu(gate) if alpha is None else gate * torch.sigmoid(gate * alpha)
    return inner * (up if beta is None else up + beta)


@dataclass(frozen=True, kw_only=True)
class FusedMoEParallelConfig:
    """How experts are divided among ranks: all of them on every rank in slices, or whole ones, some on each."""

    tp_size: int
    tp_rank: int
    ep_size: int = 1
    ep_rank: int = 0
    dp_size: int = 1
    dp_rank: int = 0

    @property
    def use_ep(self) -> bool:
        return self.ep_size > 1

    @classmethod
    def here(cls) -> FusedMoEParallelConfig:
        tp, ep = get_tp_group(), get_ep_group()
        if ep.world_size > 1:
            return cls(tp_size=1, tp_rank=0, ep_size=ep.world_size, ep_rank=ep.rank)
        return cls(tp_size=tp.world_size, tp_rank=tp.rank)

    @staticmethod
    def flatten_tp_across_dp_and_pcp(
        tp_size: int, dp_size: int, dp_rank: int, pcp_size: int = 1, pcp_rank: int = 0
    ) -> tuple[int, int]:
        """Among how many ranks each expert is divided, and which of them this is: those of tensor parallelism. Copies
        of a model share nothing here, and the context of a sequence is not divided."""
        return tp_size, get_tp_group().rank
