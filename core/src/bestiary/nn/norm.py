"""Normalisation layers. With a residual they add first: ``norm(x, residual)`` is ``(normed, x + residual)``."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError

from .ops.norm import fused_add_rms_norm, gemma_rms_norm, layer_norm, rms_norm


def _parameter(size: int, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=dtype, device="meta"), requires_grad=False)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, of any number of leading ones (tokens, or tokens and heads)."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        var_hidden_size: int | None = None,
        has_weight: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`var_hidden_size` other than `hidden_size` (a mean over a part of the width) is a `ConfigError`."""
        super().__init__()
        if var_hidden_size not in (None, hidden_size):
            raise ConfigError(
                "unsupported layer: RMSNorm whose mean is over a part of its width",
                code="UNSUPPORTED_LAYER", field="var_hidden_size", value=var_hidden_size, limit=hidden_size,
            )  # fmt: skip
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.weight = _parameter(hidden_size, dtype) if has_weight else None

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return rms_norm(x, self.weight, self.variance_epsilon)
        return fused_add_rms_norm(x, residual, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.variance_epsilon}"


class GemmaRMSNorm(nn.Module):
    """Gemma's RMS norm: the stored weight is an offset from one, and the product is rounded once."""

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.weight = _parameter(hidden_size, dtype)

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return gemma_rms_norm(x, self.weight, self.variance_epsilon)
        added = x + residual
        return gemma_rms_norm(added, self.weight, self.variance_epsilon), added

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.variance_epsilon}"


class LayerNorm(nn.Module):
    """Layer norm over the last dimension. `bias` is meant only where there is a weight (`elementwise_affine`)."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.weight = _parameter(hidden_size, dtype) if elementwise_affine else None
        self.bias = _parameter(hidden_size, dtype) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.variance_epsilon}"
