"""What stands before a layer's own quantization method once adapters may be added to its product.

The base's product stays what it was, in whatever format its weight is kept; a batch without adapters pays one look at
the forward context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bestiary.api.errors import EngineError
from bestiary.nn.quant.base import QuantizeMethodBase

from .slots import LayerSlots


class LoRAMethod(QuantizeMethodBase):
    """`base`, and the adapters in `slots`; for linear layers and heads."""

    def __init__(self, base: QuantizeMethodBase, slots: LayerSlots) -> None:
        self.base = base
        self.slots = slots

    def __str__(self) -> str:
        return str(self.base)

    def create_weights(self, layer: nn.Module, *sizes: Any, **attributes: Any) -> None:
        raise EngineError("slots for adapters are given to finished layers: their weights are made before")

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.slots.add(self.base.apply(layer, x, bias), x)

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return self.base.embedding(layer, ids)


class LoRAEmbeddingMethod(LoRAMethod):
    """The same for an embedding. Where a head has no weight of its own, its product is the base's alone: an adapter on
    the embedding says nothing about the head, unless it names it too."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.base.apply(layer, x, bias)

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return self.slots.add_embedding(self.base.embedding(layer, ids), ids)
