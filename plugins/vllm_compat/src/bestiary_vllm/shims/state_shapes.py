"""Shapes and dtypes of states as vLLM's model classes state them; the engine asks layers instead, and never these.

A convolution's state is ``(inputs kept, channels)`` here, in the order that vLLM keeps it by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bestiary.nn.parallel import divide
from bestiary_vllm.shims.config import str_dtype_to_torch_dtype

Shape = tuple[int, ...]
MambaStateCopyFunc = Callable[[torch.Tensor, list[int], int, int], torch.Tensor]
MambaStateCopyFuncs = tuple[MambaStateCopyFunc, ...]
MambaStateCopyFuncsByType = dict[Any, MambaStateCopyFuncs]


class MambaStateDtypeCalculator:
    """Dtypes of states; "auto" is the model's."""

    @classmethod
    def mamba1_state_dtype(
        cls, model_dtype: str | torch.dtype, mamba_cache_dtype: str, mamba_ssm_cache_dtype: str = "auto"
    ) -> tuple[torch.dtype, ...]:
        kept = _dtype(mamba_cache_dtype, model_dtype)
        return kept, kept if mamba_ssm_cache_dtype == "auto" else _dtype(mamba_ssm_cache_dtype, model_dtype)

    mamba2_state_dtype = gated_delta_net_state_dtype = mamba1_state_dtype

    @classmethod
    def kda_state_dtype(
        cls, model_dtype: str | torch.dtype, mamba_cache_dtype: str, mamba_ssm_cache_dtype: str = "auto"
    ) -> tuple[torch.dtype, ...]:
        """The recurrent state is fp32 unless said otherwise."""
        return _dtype(mamba_cache_dtype, model_dtype), _dtype(mamba_ssm_cache_dtype, torch.float32)

    @classmethod
    def short_conv_state_dtype(
        cls, model_dtype: str | torch.dtype, mamba_cache_dtype: str, *more: str
    ) -> tuple[torch.dtype, ...]:
        return (_dtype(mamba_cache_dtype, model_dtype),)

    linear_attention_state_dtype = short_conv_state_dtype


class MambaStateShapeCalculator:
    """Shapes of one sequence's states on one of several ranks; `num_spec` more inputs are kept for drafted tokens."""

    @classmethod
    def mamba1_state_shape(
        cls, tp_world_size: int, intermediate_size: int, state_size: int, conv_kernel: int, num_spec: int = 0
    ) -> tuple[Shape, ...]:
        channels = divide(intermediate_size, tp_world_size, "intermediate_size")
        return (conv_kernel - 1 + num_spec, channels), (channels, state_size)

    @classmethod
    def mamba2_state_shape(
        cls,
        tp_world_size: int,
        intermediate_size: int,
        n_groups: int,
        num_heads: int,
        head_dim: int,
        state_size: int,
        conv_kernel: int,
        num_spec: int = 0,
    ) -> tuple[Shape, ...]:
        groups = n_groups + cls.extra_groups_for_head_shards(n_groups, tp_world_size)
        channels = divide(intermediate_size + 2 * groups * state_size, tp_world_size, "intermediate_size")
        heads = divide(num_heads, tp_world_size, "num_heads")
        return (conv_kernel - 1 + num_spec, channels), (heads, head_dim, state_size)

    @classmethod
    def extra_groups_for_head_shards(cls, ngroups: int, tp_size: int) -> int:
        """How many copies of groups there are where every rank must have one."""
        return 0 if ngroups % tp_size == 0 else tp_size - ngroups

    @classmethod
    def short_conv_state_shape(
        cls, tp_world_size: int, intermediate_size: int, conv_kernel: int, num_spec: int = 0
    ) -> tuple[Shape, ...]:
        return ((conv_kernel - 1 + num_spec, divide(intermediate_size, tp_world_size, "conv_dim")),)

    @classmethod
    def linear_attention_state_shape(cls, num_heads: int, tp_size: int, head_dim: int) -> tuple[Shape, ...]:
        return ((divide(num_heads, tp_size, "num_heads"), head_dim, head_dim),)

    @classmethod
    def gated_delta_net_state_shape(
        cls,
        tp_world_size: int,
        num_k_heads: int,
        num_v_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_kernel_size: int,
        num_spec: int = 0,
    ) -> tuple[Shape, ...]:
        channels = divide(2 * num_k_heads * head_k_dim + num_v_heads * head_v_dim, tp_world_size, "conv_dim")
        heads = divide(num_v_heads, tp_world_size, "linear_num_value_heads")
        return (conv_kernel_size - 1 + num_spec, channels), (heads, head_v_dim, head_k_dim)

    @classmethod
    def kda_state_shape(
        cls,
        tp_world_size: int,
        num_heads: int,
        head_dim: int,
        num_k_heads: int | None = None,
        head_k_dim: int | None = None,
        conv_kernel_size: int = 4,
        num_spec: int = 0,
    ) -> tuple[Shape, ...]:
        keys = (num_k_heads or num_heads) * (head_k_dim or head_dim)
        channels = divide(num_heads * head_dim + 2 * keys, tp_world_size, "conv_dim")
        heads = divide(num_heads, tp_world_size, "num_heads")
        return (conv_kernel_size - 1 + num_spec, channels), (heads, head_dim, head_dim)


def get_conv_copy_spec(
    state: torch.Tensor, block_ids: list[int], cur_block_idx: int, num_accepted_tokens: int
) -> torch.Tensor:
    """The part of a block's inputs that is kept once so many drafted tokens were accepted."""
    return state[block_ids[cur_block_idx], num_accepted_tokens - 1 :]


def get_temporal_copy_spec(
    state: torch.Tensor, block_ids: list[int], cur_block_idx: int, num_accepted_tokens: int
) -> torch.Tensor:
    """The recurrent state after the last accepted token."""
    return state[block_ids[cur_block_idx + num_accepted_tokens - 1]]


class MambaStateCopyFuncCalculator:
    """What copies each of a layer's states; nobody here asks, as the engine's rows are never moved."""

    @classmethod
    def mamba1_state_copy_func(cls) -> MambaStateCopyFuncs:
        return get_conv_copy_spec, get_temporal_copy_spec

    mamba2_state_copy_func = gated_delta_net_state_copy_func = kda_state_copy_func = mamba1_state_copy_func

    @classmethod
    def short_conv_state_copy_func(cls) -> MambaStateCopyFuncs:
        return (get_conv_copy_spec,)

    @classmethod
    def linear_attention_state_copy_func(cls) -> MambaStateCopyFuncs:
        return (get_temporal_copy_spec,)


def is_conv_state_dim_first() -> bool:
    """Whether ``(channels, inputs kept)`` is the order in which these shapes are stated."""
    return False


def _dtype(name: str | torch.dtype, otherwise: str | torch.dtype) -> torch.dtype:
    chosen = otherwise if name == "auto" else name
    return chosen if isinstance(chosen, torch.dtype) else str_dtype_to_torch_dtype(chosen)
