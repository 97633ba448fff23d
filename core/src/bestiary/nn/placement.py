"""Placing a built model: one walk that tells every layer what construction could not.

A plugin file builds modules; it does not thread names, quantization or devices through them. The walk gives each layer
its full dotted name and quantized layout (`place`), then turns meta parameters into real, empty ones on the device
(`materialize`), and after loading lets each repack itself (`finish`).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .quant.base import QuantizationConfig


@runtime_checkable
class Placeable(Protocol):
    """A layer with a layout to be decided and weights to be repacked."""

    def place(self, quant_config: QuantizationConfig | None) -> None: ...

    def finish(self) -> None: ...


def place(model: nn.Module, quant_config: QuantizationConfig | None) -> None:
    """Name every layer and give it its layout. Embeddings come before heads tied to them, in definition order."""
    for name, module in model.named_modules():
        if hasattr(module, "layer_name"):
            module.layer_name = name
    placed = [module for module in model.modules() if isinstance(module, Placeable)]
    placed.sort(key=lambda module: hasattr(module, "tied_to"))
    for module in placed:
        module.place(quant_config)


def materialize(model: nn.Module, device: torch.device) -> None:
    """Make every meta parameter real and empty on `device`, keep ties, and move buffers there."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None:
                if id(param) not in made:
                    made[id(param)] = _real(param, device)
                module._parameters[name] = made[id(param)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _real(param: nn.Parameter, device: torch.device) -> nn.Parameter:
    # not `empty_like`, which for a meta tensor imports torch's symbolic shapes and sympy: over a second
    made = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device=device)
    real = nn.Parameter(made, requires_grad=False)
    attributes: dict[str, Any] = param.__dict__
    real.__dict__.update(attributes)
    return real


def finish(model: nn.Module) -> None:
    """Let every layer repack its weights for the kernels, and freeze the model."""
    for module in model.modules():
        if isinstance(module, Placeable):
            module.finish()
    model.eval()
    model.requires_grad_(False)
