"""`LinearBase`: what the linear family shares, and how its weights are loaded shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

from .parallel import divide
from .quant.base import QuantizationConfig, QuantizeMethodBase, UnquantizedLinearMethod, method_for
from .quant.params import PER_PART, extent, step_of
from .weights.fill import ShardId, count_use, fill, set_weight_attrs


class LinearBase(nn.Module):
    """What all of them share: sizes, the method that holds the weight, and loading shard by shard.

    Attributes:
        output_sizes: full sizes of the logical outputs (one, unless the layer is fused).
        output_partition_sizes, input_size_per_partition: this rank's part of them.
        layer_name: the full dotted name, set by the placement walk.
        fused_names: those of the checkpoint's layers in it, where `packed_modules_mapping` does not know them.
    """

    weight: nn.Parameter
    fused_names: tuple[str, ...] = ()

    def __init__(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        *,
        input_parts: int = 1,
        output_parts: Sequence[int] | None = None,
        bias: bool,
        skip_bias_add: bool,
        params_dtype: torch.dtype | None,
        return_bias: bool,
    ) -> None:
        super().__init__()
        self.layer_name = ""
        self.input_size = input_size
        self.output_sizes = list(output_sizes)
        self.output_size = sum(output_sizes)
        self.output_partition_sizes = list(output_parts or output_sizes)
        self.output_size_per_partition = sum(self.output_partition_sizes)
        self.input_size_per_partition = divide(input_size, input_parts, "input_size")
        self.skip_bias_add = skip_bias_add
        self.return_bias = return_bias
        self.params_dtype = params_dtype or torch.get_default_dtype()
        self.quant_method: QuantizeMethodBase = UnquantizedLinearMethod()
        self._create_weights()
        if bias:
            made = torch.empty(self.output_size_per_partition, dtype=self.params_dtype, device="meta")
            self.bias: nn.Parameter | None = nn.Parameter(made, requires_grad=False)
            set_weight_attrs(self.bias, {"output_dim": 0, "weight_loader": self.weight_loader})
        else:
            self.register_parameter("bias", None)

    def place(self, quant_config: QuantizationConfig | None) -> None:
        """Take the layout `quant_config` prescribes for this layer, by its full name."""
        method = method_for(self, quant_config, self.layer_name)
        if not isinstance(method, UnquantizedLinearMethod):
            del self.weight
            self.quant_method = method
            self._create_weights()

    @property
    def own_bias(self) -> torch.Tensor | None:
        """The bias that this rank's product adds."""
        return None if self.skip_bias_add else self.bias

    def finish(self) -> None:
        self.quant_method.process_weights_after_loading(self)

    def _create_weights(self) -> None:
        self.quant_method.create_weights(
            self,
            self.input_size_per_partition,
            self.output_partition_sizes,
            self.input_size,
            self.output_size,
            self.params_dtype,
            weight_loader=self.weight_loader,
        )

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, x, self.own_bias)

    def _answer(self, output: torch.Tensor) -> Any:
        if not self.return_bias:
            return output
        return output, (self.bias if self.skip_bias_add else None)

    # Loading. A parameter with `output_dim` is split along it by column layers, one with `input_dim` by row layers;
    # an `output_step` says how many outputs one of its elements stands for (`quant.params`).

    def shard_index(self, shard_id: ShardId) -> int:
        """Position of a shard in `output_sizes`."""
        if not isinstance(shard_id, int) or not 0 <= shard_id < len(self.output_sizes):
            raise WeightsMismatch(
                f"{type(self).__name__} has no shard {shard_id!r}", limit=f"0…{len(self.output_sizes) - 1}"
            )
        return shard_id

    def shard_id_at(self, index: int) -> ShardId:
        """The id under which the `index`-th name of a `packed_modules_mapping` entry is loaded."""
        return index

    def rank_of_shard(self, index: int) -> int:
        """Which slice of shard `index` this rank holds."""
        return 0

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
        """Copy this rank's part of a checkpoint tensor: of shard `shard_id`, or of the whole, fused tensor."""
        output_dim: int | None = getattr(param, "output_dim", None)
        if output_dim is None:
            fill(param, param.data, loaded_weight)
        elif isinstance(shard_id, tuple):
            self._load_several(param, loaded_weight, [self.shard_index(each) for each in shard_id], output_dim)
        elif shard_id is not None:
            self._load_shard(param, loaded_weight, self.shard_index(shard_id), output_dim)
        else:
            self._load_several(param, loaded_weight, list(range(len(self.output_sizes))), output_dim)

    def _load_several(self, param: nn.Parameter, loaded: torch.Tensor, indices: list[int], dim: int) -> None:
        step = step_of(param)
        sizes = [extent(self.output_sizes[index], step) for index in indices]
        if step == PER_PART and loaded.numel() == 1:  # fused in the checkpoint, under one scale
            count_use(loaded)
            loaded = loaded.reshape(1).repeat(len(indices))
        refuse_other_rows(loaded, sum(sizes), dim)
        for index, part in zip(indices, torch.split(loaded, sizes, dim), strict=True):
            self._load_shard(param, part, index, dim)

    def _load_shard(self, param: nn.Parameter, loaded: torch.Tensor, index: int, dim: int) -> None:
        step = step_of(param)
        sizes = [extent(each, step) for each in self.output_partition_sizes]
        size = sizes[index]
        target = param.data.narrow(dim, sum(sizes[:index]), size)
        start = self.rank_of_shard(index) * size
        if loaded.dim() > dim and loaded.shape[dim] == extent(self.output_sizes[index], step) != size:
            loaded = loaded.narrow(dim, start, size)
        fill(param, target, loaded)

    def extra_repr(self) -> str:
        parts = f"in={self.input_size_per_partition}, out={self.output_partition_sizes}, bias={self.bias is not None}"
        return f"{parts}, {type(self.quant_method).__name__}"


def refuse_other_rows(loaded: torch.Tensor, rows: int, dim: int) -> None:
    """A `WeightsMismatch` where dimension `dim` of a checkpoint tensor has not `rows` elements."""
    if loaded.shape[dim : dim + 1] != (rows,):
        raise WeightsMismatch(
            f"expected {rows} rows in dimension {dim}, the checkpoint has shape {list(loaded.shape)}",
            limit=rows,
            value=list(loaded.shape),
        )
