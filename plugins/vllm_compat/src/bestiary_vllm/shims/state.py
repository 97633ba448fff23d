"""State layers as vLLM's model files make and call them: sizes from configuration objects, results into given tensors.

Where a file hands over an `output`, the result is written there and nothing is returned, otherwise it is returned.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from bestiary import nn as core
from bestiary.nn.weights.fill import load_into
from bestiary_vllm.said import say_once


def _given(result: Tensor, output: Tensor | None) -> Tensor | None:
    if output is None:
        return result
    output[: result.shape[0]] = result
    return None


class MambaMixer(core.MambaMixer):
    def forward(self, hidden_states: Tensor, output: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return _given(super().forward(hidden_states), output)


class MambaMixer2(core.MambaMixer2):
    """Core's; `n_groups` counts a group as often as there are ranks that hold it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tp_size = core.get_tensor_model_parallel_world_size()
        self.n_groups, self.num_heads = self.groups * self.tp_size, self.heads * self.tp_size

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *rest: Tensor | None,
        output: Tensor | None = None,
        mup_vector: Tensor | None = None,
    ) -> Tensor | None:
        """``(hidden_states, mup_vector)``, or as it was before ``(hidden_states, output, mup_vector)``."""
        if rest and (len(rest) > 1 or (rest[0] is not None and rest[0].shape == hidden_states.shape)):
            output, *rest = rest  # type: ignore[assignment]
        if output is not None:
            say_once("MambaMixer2(hidden_states, output) is an older spelling: it returns its result now")
        return _given(super().forward(hidden_states, rest[0] if rest else mup_vector), output)


class ShortConv(core.ShortConv):
    def __init__(self, config: Any, dim: int, layer_idx: int, *configs: Any, **options: Any) -> None:
        super().__init__(dim, config.conv_L_cache, config.conv_bias)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, output: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return _given(super().forward(hidden_states), output)


class QwenGatedDeltaNetAttention(core.GatedDeltaNetAttention):
    def __init__(
        self,
        config: Any,
        vllm_config: Any = None,
        prefix: str = "",
        gqa_interleaved_layout: bool = False,
        reduce_results: bool = True,
        **options: Any,
    ) -> None:
        """All sizes are `config`'s; of the rest only what is named here changes anything."""
        super().__init__(
            config.hidden_size,
            *_delta_sizes(config),
            rms_norm_eps=config.rms_norm_eps,
            activation=config.hidden_act,
            output_gate_type=getattr(config, "output_gate_type", None) or "silu",
            gqa_interleaved_layout=gqa_interleaved_layout,
            reduce_results=reduce_results,
        )

    def forward(self, hidden_states: Tensor, output: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return _given(super().forward(hidden_states), output)


class OlmoHybridGatedDeltaNetAttention(core.OlmoHybridGatedDeltaNetAttention):
    def __init__(self, config: Any, vllm_config: Any = None, prefix: str = "", **options: Any) -> None:
        super().__init__(
            config.hidden_size,
            *_delta_sizes(config),
            allow_neg_eigval=getattr(config, "linear_allow_neg_eigval", False),
        )

    def forward(self, hidden_states: Tensor, output: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return _given(super().forward(hidden_states), output)


def _delta_sizes(config: Any) -> tuple[int, int, int, int, int]:
    return (
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
    )


class MiniMaxText01LinearAttention(core.LightningAttention):
    def __init__(self, config: Any = None, vllm_config: Any = None, prefix: str = "linear_attn", **sizes: Any) -> None:
        """By a configuration; or as it was before, by `hidden_size`, `num_heads`, `head_dim`, `num_hidden_layer` and
        `layer_idx`."""
        if config is None:
            say_once("MiniMaxText01LinearAttention(hidden_size=…) is an older spelling: it takes a configuration now")
            layers, layer = sizes["num_hidden_layer"], sizes["layer_idx"]
            super().__init__(sizes["hidden_size"], sizes["num_heads"], sizes["head_dim"], layer, layers)
        else:
            layer, layers = core.extract_layer_index(prefix), config.num_hidden_layers
            super().__init__(config.hidden_size, config.num_attention_heads, _head_dim(config), layer, layers)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, output: Tensor | None = None, positions: Tensor | None = None, **options: Any
    ) -> Tensor | None:
        return _given(super().forward(hidden_states), output)


class BailingMoELinearAttention(core.BailingMoELinearAttention):
    def __init__(self, config: Any, vllm_config: Any = None, prefix: str = "linear_attn", **options: Any) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            _head_dim(config),
            core.extract_layer_index(prefix),
            config.num_hidden_layers,
            max_position=config.max_position_embeddings,
            rope_parameters=rope_parameters(config),
            rms_norm_eps=float(getattr(config, "rms_norm_eps", 1e-5)),
            group_norm_size=getattr(config, "group_norm_size", 1),
            qkv_bias=config.use_bias or config.use_qkv_bias,
            bias=config.use_bias,
            use_qk_norm=getattr(config, "use_qk_norm", False),
            use_rope=getattr(config, "linear_rope", True),
            use_silu=getattr(config, "use_linear_silu", getattr(config, "linear_silu", False)),
        )

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, output: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | None:
        """``(hidden_states, output, positions)``; without an output the result is returned."""
        if positions is None:
            raise TypeError("BailingMoELinearAttention needs positions")
        return _given(super().forward(hidden_states, positions), output)

    @staticmethod
    def weight_direct_load(param: torch.nn.Parameter, loaded_weight: Tensor) -> None:
        """Fill a parameter by its own loader, or by the default one."""
        load_into(param, loaded_weight)


class FusedRMSNormGated(core.RMSNormGated):
    """The norm, then the gate."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, activation: str = "swish", **options: Any) -> None:
        super().__init__(hidden_size, eps, norm_before_gate=True, activation=activation)


def rope_parameters(config: Any) -> dict[str, Any] | None:
    """Rotary parameters of a configuration, whether they stand together or as older files have them."""
    found = deepcopy(getattr(config, "rope_parameters", None)) or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name not in found and hasattr(config, name):
            found[name] = getattr(config, name)
    scaling = getattr(config, "rope_scaling", None)
    if isinstance(scaling, dict):
        found.update({"rope_type" if name == "type" else name: value for name, value in deepcopy(scaling).items()})
    return found or None


def _head_dim(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size
