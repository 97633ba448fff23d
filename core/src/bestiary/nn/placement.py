"""Placing a built model: one walk that tells every layer what construction could not.

A plugin file builds modules; it does not thread names, quantization or devices through them. The walk gives each layer
its full dotted name and quantized layout (`place`), then turns meta parameters into real, empty ones on the device
(`materialize`), and after loading lets each repack itself (`finish`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from bestiary.api.errors import BrokenPlugin, ConfigError

from .quant.base import QuantizationConfig


@runtime_checkable
class Placeable(Protocol):
    """A layer with a layout to be decided and weights to be repacked."""

    def place(self, quant_config: QuantizationConfig | None) -> None: ...

    def finish(self) -> None: ...


def place(model: nn.Module, quant_config: QuantizationConfig | None) -> None:
    """Name every layer and give it its layout. Embeddings come before heads tied to them, in definition order."""
    if quant_config is not None:
        quant_config.packed_modules_mapping = _fusions(model)
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        quant_config.mappers = [*quant_config.mappers, *([] if mapper is None else [mapper])]
    for name, module in model.named_modules():
        if hasattr(module, "layer_name"):
            module.layer_name = name
    _find_shared_caches(model)
    for module in _placeable(model):
        module.place(quant_config)


def _placeable(model: nn.Module) -> list[Placeable]:
    """Layers in definition order; those tied to others, or which read what others have finished, last."""
    found = [module for module in model.modules() if isinstance(module, Placeable)]
    return sorted(found, key=lambda module: hasattr(module, "tied_to") or hasattr(module, "reads_finished"))


def _fusions(model: nn.Module) -> dict[str, list[str]]:
    """Every `packed_modules_mapping` in the model, as one."""
    found: dict[str, list[str]] = {}
    for module in model.modules():
        found.update({fused: list(parts) for fused, parts in getattr(module, "packed_modules_mapping", {}).items()})
    return found


def _find_shared_caches(model: nn.Module) -> None:
    """A layer that shares another's cache names that one by the `prefix` its file gave it, or by its full name."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "kv_sharing_target_layer_name")]
    names = {layer.prefix: layer.layer_name for layer in layers if layer.prefix}
    names.update({layer.layer_name: layer.layer_name for layer in layers})
    for layer in layers:
        target = layer.kv_sharing_target_layer_name
        if target is None:
            continue
        if target not in names:
            raise ConfigError(
                "a layer shares the cache of a layer that is not there",
                field=f"{layer.layer_name}.kv_sharing_target_layer_name",
                value=target,
                limit=f"one of {', '.join(sorted(names)[:8])} …",
            )
        layer.kv_sharing_target_layer_name = names[target]


def materialize(model: nn.Module, device: torch.device) -> None:
    """Make every meta parameter real and empty on `device`, keep ties, and move buffers there.

    Raises:
        BrokenPlugin: a buffer was made on the meta device, so its values are lost.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None:
                if id(param) not in made:
                    made[id(param)] = _real(param, device)
                module._parameters[name] = made[id(param)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                _refuse_lost(module, name, buffer)
                module._buffers[name] = buffer.to(device)


def _refuse_lost(module: nn.Module, name: str, buffer: torch.Tensor) -> None:
    if buffer.is_meta:
        where = f"{getattr(module, 'layer_name', '') or type(module).__name__}.{name}"
        raise BrokenPlugin(
            f"the buffer {where} has no values: it was made of a parameter, which has none while a model is built",
            field=where, limit="a buffer that is computed from numbers", fix="its author: make it without parameters",
        )  # fmt: skip


def _real(param: nn.Parameter, device: torch.device) -> nn.Parameter:
    # not `empty_like`, which for a meta tensor imports torch's symbolic shapes and sympy: over a second
    made = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device=device)
    real = nn.Parameter(made, requires_grad=False)
    attributes: dict[str, Any] = param.__dict__
    real.__dict__.update(attributes)
    return real


def finish(model: nn.Module, progress: Callable[[int, int], None] | None = None) -> None:
    """Let every layer repack its weights for the kernels, and freeze the model.

    `progress` is called after each layer with the bytes of the layers that are done, and of all, before repacking.
    """
    layers = _placeable(model)
    sizes = list(_own_bytes(layers))
    done, total = 0, sum(sizes)
    for layer, size in zip(layers, sizes, strict=True):
        layer.finish()
        done += size
        if progress is not None:
            progress(done, total)
    model.eval()
    model.requires_grad_(False)


def _own_bytes(layers: Iterable[Any]) -> Iterator[int]:
    """The bytes of each layer's parameters; those that are an earlier one's as well count there."""
    seen: set[int] = set()
    for layer in layers:
        new = {id(param): param.nbytes for param in layer.parameters(recurse=False) if id(param) not in seen}
        seen.update(new)
        yield sum(new.values())
