"""4-bit codes for 16 numbers: NF4 (QLoRA, arXiv 2305.14314, appendix E) and FP4 (e2m1 as bitsandbytes orders it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from bestiary.nn.ops.product import Product
from bestiary.nn.ops.quant import linear_codebook

from .base import QuantizeMethodBase
from .params import add_parameter, refuse_cut_groups

_FP4 = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
CODEBOOKS: dict[str, tuple[float, ...]] = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": tuple(sign * number / 12 for sign in (1.0, -1.0) for number in _FP4),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CodebookLinearMethod(QuantizeMethodBase):
    """`weight` uint8 ``[out, in / 2]``, two codes a byte; `weight_scale` float32 ``[out, in / group_size]``.

    Args:
        group_size: divides the inputs. kind: a name in `CODEBOOKS`.
    """

    kind: Literal["nf4", "fp4"]
    group_size: int

    def __str__(self) -> str:
        return f"{self.kind} in groups of {self.group_size}"

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        rows, width = sum(output_partition_sizes), input_size_per_partition
        refuse_cut_groups(layer, width, input_size, self.group_size, "inputs")
        attrs = {**extra_weight_attrs, "output_dim": 0, "input_dim": 1}
        add_parameter(layer, "weight", (rows, width // 2), torch.uint8, attrs, num_weights=rows * width)
        add_parameter(layer, "weight_scale", (rows, width // self.group_size), torch.float32, attrs)

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.codebook = torch.tensor(CODEBOOKS[self.kind], device=layer.weight.device)

    def bytes_added(self, layer: Any) -> int:
        return len(CODEBOOKS[self.kind]) * torch.float32.itemsize

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(layer)(x, bias)

    def product(self, layer: Any) -> Product:
        tensors = {"weight": layer.weight, "scale": layer.weight_scale, "codebook": layer.codebook}
        return Product(linear_codebook, tensors, {"group_size": self.group_size})
