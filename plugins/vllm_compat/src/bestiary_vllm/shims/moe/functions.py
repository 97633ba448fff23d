"""Routing and experts as functions, and what files ask about the way experts are computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch

from bestiary.api.errors import ConfigError
from bestiary.nn.ops.moe import fused_experts as core_fused_experts
from bestiary.nn.ops.moe import topk_routing

from .experts import ROUTED


class MoEActivation(StrEnum):
    """Activations of experts by name; those without a gate end in ``_no_mul``."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU2 = "relu2"
    SWIGLUOAI = "swigluoai"
    SWIGLUSTEP = "swiglustep"
    SILU_NO_MUL = "silu_no_mul"
    GELU_NO_MUL = "gelu_no_mul"
    GELU_TANH_NO_MUL = "gelu_tanh_no_mul"
    RELU2_NO_MUL = "relu2_no_mul"


def fused_topk(
    hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights fp32, ids int32, rows int32), each ``[tokens, topk]``: scores of all experts, then the best."""
    weights, ids = topk_routing(gating_output, topk, renormalize, options.get("scoring_func", "softmax"))
    rows = torch.arange(ids.numel(), device=ids.device, dtype=torch.int32).view(topk, -1).t()
    return weights, ids.int(), rows


def grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int = 0,
    topk_group: int = 0,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights fp32, ids int32), both ``[tokens, topk]``, chosen within the best groups of experts."""
    groups = (num_expert_group, topk_group) if num_expert_group else (None, None)
    weights, ids = topk_routing(gating_output, topk, renormalize, scoring_func, e_score_correction_bias, *groups)
    return weights * routed_scaling_factor, ids.int()


def fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool = False,
    activation: str = "silu",
    **options: Any,
) -> torch.Tensor:
    """Tokens through their experts, whose stacked weights are parameters of the caller's.

    `inplace`: the answer is written over `hidden_states`, and returned.
    """
    asked = [name for name, value in options.items() if value not in (None, False, -1)]
    if asked:
        raise ConfigError(
            f"fused_experts with {', '.join(asked)} is not computed here",
            code="UNSUPPORTED_LAYER", field=asked[0], value=str(options[asked[0]]),
        )  # fmt: skip
    output = core_fused_experts(hidden_states, w1, w2, topk_weights.float(), topk_ids.long(), str(activation))
    return hidden_states.copy_(output) if inplace else output


def fused_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    inplace: bool = False,
    **options: Any,
) -> torch.Tensor:
    """`fused_topk`, then `fused_experts`: until 0.9 one call."""
    weights, ids, _ = fused_topk(hidden_states, gating_output, topk, renormalize)
    return fused_experts(hidden_states, w1, w2, weights, ids, inplace, **options)


def resolve_layer_fused_shared_expert(*arguments: Any, **options: Any) -> bool:
    """Shared experts are never laid among the routed ones here."""
    return False


def is_model_fused_shared_expert_compatible(*arguments: Any, **options: Any) -> bool:
    """As `resolve_layer_fused_shared_expert`."""
    return False


def maybe_fuse_shared_experts(weights: Iterable[tuple[str, torch.Tensor]], **options: Any) -> Iterable[Any]:
    """The stream as it is: see `resolve_layer_fused_shared_expert`."""
    return weights


def maybe_remap_moe_expert_param_name(name: str, params_dict: Mapping[str, Any]) -> str:
    """A stacked parameter's name with the module that holds it now, if the model has that."""
    renamed = name.replace(".experts.", f".experts.{ROUTED}.", 1)
    return renamed if ROUTED not in name and renamed in params_dict else name


def remap_moe_expert_weights(
    weights: Iterable[tuple[str, torch.Tensor]], params_dict: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield maybe_remap_moe_expert_param_name(name, params_dict), tensor
