"""The linear family: replicated, column-parallel, row-parallel, and their fused forms.

Column-parallel layers split the output among tensor-parallel ranks, row-parallel ones the input; a column layer
followed by a row layer needs one all-reduce (Megatron-LM, arXiv 1909.08053). A weight is ``[output, input]``, as in
torch.

Every layer accepts `prefix` and `quant_config` for the sake of files written for vLLM and uses neither: full names
and the quantization come from the placement walk (`placement.py`). `forward` returns ``(output, bias or None)``, the
bias being given back only under `skip_bias_add`; with ``return_bias=False`` just the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import UsageError, WeightsMismatch

from .linear_base import LinearBase, refuse_other_rows
from .parallel import (
    divide,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    refuse,
    split_tensor_along_last_dim,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from .quant.params import PER_PART, step_of
from .weights.fill import ShardId, count_use, fill


class ReplicatedLinear(LinearBase):
    """The whole layer on every rank."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            [output_size],
            bias=bias,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            return_bias=return_bias,
        )

    def forward(self, x: torch.Tensor) -> Any:
        return self._answer(self._multiply(x))


class ColumnParallelLinear(LinearBase):
    """Outputs split among ranks; `gather_output` joins them again."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        output_sizes: Sequence[int] | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        self.tp_size = 1 if disable_tp else get_tensor_model_parallel_world_size()
        self.tp_rank = 0 if disable_tp else get_tensor_model_parallel_rank()
        sizes = list(output_sizes or [output_size])
        super().__init__(
            input_size,
            sizes,
            output_parts=self.partition_sizes(sizes),
            bias=bias,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            return_bias=return_bias,
        )
        self.gather_output = gather_output and self.tp_size > 1

    def partition_sizes(self, sizes: Sequence[int]) -> list[int]:
        """This rank's size of each logical output."""
        return [divide(size, self.tp_size, "output_size") for size in sizes]

    def rank_of_shard(self, index: int) -> int:
        return self.tp_rank

    def forward(self, x: torch.Tensor) -> Any:
        output = self._multiply(x)
        if self.gather_output:
            output = tensor_model_parallel_all_gather(output)
        return self._answer(output)


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column-parallel layers over one input, as one product: ``gate_proj`` and ``up_proj``, say."""

    def __init__(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            sum(output_sizes),
            bias=bias,
            gather_output=gather_output,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            output_sizes=output_sizes,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections as one product, split by heads.

    Where there are more ranks than key/value heads, each head is held by several ranks. Shard ids are "q", "k", "v".

    A fused tensor in a checkpoint has all queries' rows, then the keys', then the values'; or, with `interleaved`, it
    goes by key/value heads, each with the rows of its queries, its key and its value (BLOOM, GPT-NeoX, Falcon).

    Attributes:
        num_heads, num_kv_heads: this rank's heads. q_size, kv_size, v_size: this rank's widths; ``qkv.split([q_size,
        kv_size, v_size], dim=-1)`` takes the output apart (`split_sizes`).
    """

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
        v_head_size: int | None = None,
        interleaved: bool = False,
    ) -> None:
        self.interleaved = interleaved
        self.head_size = head_size
        self.v_head_size = v_head_size or head_size
        self.total_num_heads = total_num_heads
        self.total_num_kv_heads = total_num_kv_heads or total_num_heads
        tp_size = 1 if disable_tp else get_tensor_model_parallel_world_size()
        self.num_heads = divide(total_num_heads, tp_size, "num_attention_heads")
        if tp_size > self.total_num_kv_heads:
            self.num_kv_heads = 1
            self.num_kv_head_replicas = -(-tp_size // self.total_num_kv_heads)
            if tp_size % self.total_num_kv_heads:
                refuse(
                    UsageError(
                        f"{self.total_num_kv_heads} key-value heads cannot be copied evenly to {tp_size} ranks",
                        field="num_key_value_heads", value=self.total_num_kv_heads, limit=f"a divisor of {tp_size}",
                    )
                )  # fmt: skip
        else:
            self.num_kv_heads = divide(self.total_num_kv_heads, tp_size, "num_key_value_heads")
            self.num_kv_head_replicas = 1
        sizes = [
            total_num_heads * head_size,
            self.total_num_kv_heads * head_size,
            self.total_num_kv_heads * self.v_head_size,
        ]
        super().__init__(
            hidden_size,
            sum(sizes),
            bias=bias,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            output_sizes=sizes,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )

    @property
    def split_sizes(self) -> list[int]:
        return self.output_partition_sizes

    @property
    def q_size(self) -> int:
        return self.output_partition_sizes[0]

    @property
    def kv_size(self) -> int:
        return self.output_partition_sizes[1]

    @property
    def v_size(self) -> int:
        return self.output_partition_sizes[2]

    def partition_sizes(self, sizes: Sequence[int]) -> list[int]:
        kv = self.num_kv_heads
        return [self.num_heads * self.head_size, kv * self.head_size, kv * self.v_head_size]

    def shard_index(self, shard_id: ShardId) -> int:
        if shard_id in ("q", "k", "v"):
            return "qkv".index(str(shard_id))
        raise WeightsMismatch(f"QKVParallelLinear has no shard {shard_id!r}", limit="q, k or v")

    def shard_id_at(self, index: int) -> ShardId:
        return "qkv"[index]

    def rank_of_shard(self, index: int) -> int:
        return self.tp_rank if index == 0 else self.tp_rank // self.num_kv_head_replicas

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
        """As the base's. A fused, interleaved tensor is copied once more, into this layer's order."""
        dim: int | None = getattr(param, "output_dim", None)
        if self.interleaved and shard_id is None and dim is not None and step_of(param) != PER_PART:
            if step_of(param) > 1:
                raise WeightsMismatch(
                    "scales of blocks of rows fit no projection whose rows go head by head", limit="one scale a row"
                )
            count_use(loaded_weight)
            loaded_weight = self.deinterleave(loaded_weight, dim)
        super().weight_loader(param, loaded_weight, shard_id)

    def deinterleave(self, fused: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """A copy of `fused`, its elements along `dim` (as many as `output_size`) put from interleaved into this order.

        For whatever has a row for each output, of any dtype: weight, bias, scales, an adapter's second factor.
        """
        refuse_other_rows(fused, self.output_size, dim)
        group = self.total_num_heads // self.total_num_kv_heads
        by_head = torch.arange(self.output_size, device=fused.device).view(self.total_num_kv_heads, -1)
        parts = torch.split(by_head, [group * self.head_size, self.head_size, self.v_head_size], dim=1)
        return fused.index_select(dim, torch.cat([part.flatten() for part in parts]))


class RowParallelLinear(LinearBase):
    """Inputs split among ranks, outputs summed over them (`reduce_results`).

    With `input_is_parallel` the input arrives already split, as a column-parallel layer leaves it.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = True,
        quant_config: Any = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        self.tp_size = 1 if disable_tp else get_tensor_model_parallel_world_size()
        self.tp_rank = 0 if disable_tp else get_tensor_model_parallel_rank()
        super().__init__(
            input_size,
            [output_size],
            input_parts=self.tp_size,
            bias=bias,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            return_bias=return_bias,
        )
        self.input_is_parallel = input_is_parallel
        self.reduce_results = reduce_results and self.tp_size > 1

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
        dim: int | None = getattr(param, "input_dim", None)
        if dim is not None and self.tp_size > 1 and loaded_weight.dim() > dim:
            size = param.shape[dim]
            if loaded_weight.shape[dim] != size * self.tp_size:
                raise WeightsMismatch(
                    f"expected {size * self.tp_size} in dimension {dim}, the checkpoint has shape "
                    f"{list(loaded_weight.shape)}",
                    limit=size * self.tp_size, value=list(loaded_weight.shape),
                )  # fmt: skip
            loaded_weight = loaded_weight.narrow(dim, self.tp_rank * size, size)
        fill(param, param.data, loaded_weight)

    @property
    def own_bias(self) -> torch.Tensor | None:
        return None if self.tp_rank > 0 else super().own_bias

    def forward(self, x: torch.Tensor) -> Any:
        if not self.input_is_parallel and self.tp_size > 1:
            x = split_tensor_along_last_dim(x, self.tp_size)[self.tp_rank]
        output = self._multiply(x)
        if self.reduce_results:
            output = tensor_model_parallel_all_reduce(output)
        return self._answer(output)
