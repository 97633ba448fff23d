"""The steps of vLLM's kernel for one product of every expert, for files that take them singly; of plain weights only.

What is sorted there for a kernel stays in the order of the tokens here: the steps hand each other slots of experts.
"""

from __future__ import annotations

from typing import Any

import torch

from bestiary.api.errors import ConfigError
from bestiary.nn.ops.linear import linear

_QUANTIZED = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "ocp_mx_scheme")


def _get_config_dtype_str(dtype: torch.dtype, **options: Any) -> str | None:
    """The name of a kernel's configuration for weights of a dtype: there are none here."""
    _plain(options)
    return None


def _get_config_quant_dtype(**options: Any) -> None:
    """The dtype that hidden states are quantized to: none."""
    _plain(options)


def try_get_optimal_moe_config(
    w1_shape: Any, w2_shape: Any, top_k: int, dtype: str | None, M: int, **options: Any
) -> dict[str, int]:
    """A kernel's sizes for products of these shapes: nothing that would matter here."""
    return {}


def moe_kernel_quantize_input(
    A: torch.Tensor, A_scale: torch.Tensor | None, quant_dtype: Any, *arguments: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states as the kernel takes them, and their scales: as they are."""
    _plain({} if quant_dtype is None else {"quant_dtype": quant_dtype})
    return A, A_scale


def _prepare_expert_assignment(
    topk_ids: torch.Tensor, config: Any, num_tokens: int, top_k_num: int, global_num_experts: int,
    expert_map: torch.Tensor | None = None, **options: Any,
) -> tuple[torch.Tensor, None, None]:  # fmt: skip
    """(slots int64 ``[tokens, k]``, −1 for an expert that is not on this rank; None; None)."""
    _plain(options)
    slots = topk_ids.long()
    return (slots if expert_map is None else expert_map.to(slots.device).long()[slots]), None, None


def dispatch_fused_moe_kernel(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, A_scale: Any, B_scale: Any, B_zp: Any,
    topk_weights: torch.Tensor | None, slots: torch.Tensor, expert_ids: None, num_tokens_post_padded: None,
    mul_routed_weight: bool, top_k: int, config: Any, *arguments: Any, B_bias: torch.Tensor | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """One product of each token with each of its experts.

    Args:
        A: ``[tokens, in]``. B: ``[experts, out, in]``. B_bias: ``[experts, out]``.
        C: ``[tokens, k, out]``, written to; zeros for experts that are not here.
        topk_weights: of the products, under `mul_routed_weight`.
    """
    _plain(options)
    C.zero_()
    for expert in range(len(B)):
        tokens, place = (slots == expert).nonzero(as_tuple=True)
        C[tokens, place] = linear(A[tokens], B[expert], None if B_bias is None else B_bias[expert])
    if mul_routed_weight and topk_weights is not None:
        C.mul_(topk_weights.unsqueeze(-1))


def _plain(options: dict[str, Any]) -> None:
    asked = [name for name, value in options.items() if value and name in (*_QUANTIZED, "quant_dtype")]
    if asked:
        raise ConfigError(
            f"a product of experts with {', '.join(asked)} is not computed here",
            code="UNSUPPORTED_LAYER", field=asked[0], value=str(options[asked[0]]),
        )  # fmt: skip
