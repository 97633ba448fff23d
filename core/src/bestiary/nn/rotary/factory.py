"""`get_rope`: from a configuration's rotary parameters to a (shared) layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch

from bestiary.api.errors import ConfigError
from bestiary.nn.scope import get_current_vllm_config_or_none

from .by_prompt import PromptRotaryEmbedding
from .embedding import RotaryEmbedding
from .frequencies import RopeGeometry, frequencies

_shared: WeakValueDictionary[tuple[object, ...], RotaryEmbedding] = WeakValueDictionary()


def get_rope(
    head_size: int,
    max_position: int = 2048,
    is_neox_style: bool = True,
    rope_parameters: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    dual_chunk_attention_config: Mapping[str, Any] | None = None,
    *,
    rotary_dim: int | None = None,
    base: float | None = None,
    partial_rotary_factor: float | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    mrope_positions_factor: float | None = None,
) -> RotaryEmbedding:
    """The rotary layer for these parameters; within one build scope, equal parameters give the same layer.

    Args:
        max_position: the configuration's `max_position_embeddings`, which some scalings are relative to. The table is
            as long as the engine's `max_model_len`; outside a build scope, as long as `max_position`.
        rope_parameters: as transformers 5 has them (`rope_type`, `rope_theta`, `factor` …). The older spelling
            (`rope_scaling` with ``type``, and `base`) is understood too.
        rotary_dim, partial_rotary_factor: how much of a head is rotated, as a count or as a share; `rope_parameters`
            may name the share as well.
        dtype: rotate in this dtype instead of the activations'.
        mrope_positions_factor: ignored. It lengthens tables of multi-axis positions; those of text have one axis, since
            all three of a text token's are equal, and end at `max_model_len`.

    Raises:
        ConfigError: an unknown scaling, a missing or wrong parameter, or dual-chunk attention.
    """
    parameters = {key: value for key, value in (rope_parameters or rope_scaling or {}).items() if value is not None}
    if nested := [name for name, value in parameters.items() if isinstance(value, Mapping)]:
        raise ConfigError(
            "rotary parameters by kind of layer: a layer takes those of its own kind",
            field=f"rope_parameters.{nested[0]}",
            value=nested,
        )
    if base is not None:
        parameters.setdefault("rope_theta", base)
    if dual_chunk_attention_config is not None:
        raise ConfigError(
            "unsupported layer: rotary embedding for dual-chunk attention",
            code="UNSUPPORTED_LAYER",
            field="dual_chunk_attention_config",
            fix="run within the original length: --hf-overrides '{\"dual_chunk_attention_config\": null}'",
        )
    dim = _rotary_dim(head_size, rotary_dim, partial_rotary_factor, parameters)
    config = get_current_vllm_config_or_none()
    length = max_position if config is None else config.model_config.max_model_len
    key = (id(config), head_size, dim, max_position, length, is_neox_style, dtype, repr(sorted(parameters.items())))
    rope = None if config is None else _shared.get(key)
    if rope is None:
        angles = frequencies(RopeGeometry(head_size, dim, max_position, length), parameters)
        layer = PromptRotaryEmbedding if angles.longest_prompts else RotaryEmbedding
        rope = layer(head_size, length, is_neox_style, angles, dtype)
        if config is not None:
            rope.owner = config  # while this entry lives, no other configuration can have its id
            _shared[key] = rope
    return rope


def _rotary_dim(
    head_size: int, rotary_dim: int | None, partial_rotary_factor: float | None, parameters: Mapping[str, Any]
) -> int:
    if parameters.get("rope_type") == "proportional":
        return head_size
    dim = head_size if rotary_dim is None else rotary_dim
    share = parameters.get("partial_rotary_factor", 1.0) if partial_rotary_factor is None else partial_rotary_factor
    if not isinstance(share, int | float):
        raise ConfigError("not a share of a head", field="partial_rotary_factor", value=share, limit="0 to 1")
    if dim == head_size:
        dim = int(head_size * share)
    if dim % 2 or not 0 < dim <= head_size:
        raise ConfigError("no even part of a head", field="rotary_dim", value=dim, limit=f"even, up to {head_size}")
    return dim
