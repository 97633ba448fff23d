"""The layer that makes a router's logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bestiary.nn import GateLinear as CoreGateLinear
from bestiary.nn.quant.base import UnquantizedLinearMethod


class GateLinear(CoreGateLinear):
    """A router's gate whose logits may have another dtype than its weights.

    Attributes:
        out_dtype: of the logits; None for that of the hidden states.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = False,
        out_dtype: torch.dtype | None = None,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        prefix: str = "",
        force_fp32_compute: bool = False,
        **options: Any,
    ) -> None:
        """`force_fp32_compute`: the product is computed in fp32, whatever the logits are."""
        super().__init__(input_size, output_size, bias=bias, params_dtype=params_dtype, prefix=prefix, **options)
        self.out_dtype, self.in_fp32 = out_dtype, force_fp32_compute

    def set_out_dtype(self, out_dtype: torch.dtype) -> None:
        self.out_dtype = out_dtype

    def finish(self) -> None:
        """A plain weight is not packed for kernels: it may be multiplied in a wider dtype."""
        if not isinstance(self.quant_method, UnquantizedLinearMethod):
            super().finish()

    def forward(self, x: torch.Tensor) -> Any:
        """``[tokens, hidden]`` → (logits ``[tokens, experts]``, None), or the logits alone without `return_bias`;
        computed in the wider of both dtypes."""
        plain = isinstance(self.quant_method, UnquantizedLinearMethod)
        wider = torch.float32 if self.in_fp32 else self.out_dtype
        computed = torch.promote_types(self.weight.dtype, wider or self.weight.dtype) if plain else x.dtype
        if not plain or computed == self.weight.dtype == x.dtype:
            logits = first(super().forward(x))
        else:
            bias = None if self.bias is None else self.bias.to(computed)
            logits = F.linear(x.to(computed), self.weight.to(computed), bias)
        logits = logits.to(self.out_dtype or x.dtype)
        return (logits, None) if self.return_bias else logits


def first(output: Any) -> torch.Tensor:
    """A layer's output, whether or not its bias comes with it."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
