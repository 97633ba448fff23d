"""A model's list of layers, this pipeline stage's slice of it, and the small helpers around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from bestiary.api.intermediate import IntermediateTensors

from .parallel import get_pp_group, pipeline_range
from .scope import get_current_vllm_config_or_none


class PPMissingLayer(nn.Identity):
    """Stands where another pipeline stage has a layer; returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class LayerFn(Protocol):
    def __call__(self, *, prefix: str) -> nn.Module: ...


def make_layers(num_hidden_layers: int, layer_fn: LayerFn, prefix: str = "layers") -> tuple[int, int, nn.ModuleList]:
    """Build this stage's layers: (start, end, all layers), those of other stages being `PPMissingLayer`.

    `layer_fn` is called with ``prefix="<prefix>.<index>"``; `extract_layer_index` gives the index back.
    """
    group, scope = get_pp_group(), get_current_vllm_config_or_none()
    split = None if scope is None or group.world_size == 1 else scope.parallel_config.pipeline_layers
    start, end = pipeline_range(num_hidden_layers, group.rank, group.world_size, split)
    layers = nn.ModuleList(
        layer_fn(prefix=f"{prefix}.{index}") if start <= index < end else PPMissingLayer()
        for index in range(num_hidden_layers)
    )
    return start, end, layers


def maybe_prefix(prefix: str, name: str) -> str:
    """``prefix.name``, or just `name` at the top."""
    return f"{prefix}.{name}" if prefix else name


def extract_layer_index(layer_name: str, num_attn_module: int = 1) -> int:
    """The one integer in a dotted name: ``"model.layers.7.self_attn"`` → 7."""
    indices = [int(part) for part in layer_name.split(".") if part.isdigit()]
    if len(indices) == 1:
        return indices[0]
    if num_attn_module > 1 and len(indices) == 2:
        return indices[0] * num_attn_module + indices[1]
    raise ValueError(f"expected one layer index in {layer_name!r}, found {indices}")


def is_pp_missing_parameter(name: str, model: nn.Module) -> bool:
    """Whether a parameter belongs to a layer that another pipeline stage holds."""
    module: nn.Module = model
    for part in name.split("."):
        if isinstance(module, PPMissingLayer):
            return True
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            return False
        module = child
    return isinstance(module, PPMissingLayer)


def make_empty_intermediate_tensors_factory(
    keys: Sequence[str], hidden_size: int
) -> Callable[[int, torch.dtype, torch.device], IntermediateTensors]:
    """A function (batch_size, dtype, device) → zeros ``[batch_size, hidden_size]`` under each key."""

    def make(batch_size: int, dtype: torch.dtype, device: torch.device) -> IntermediateTensors:
        shape = (batch_size, hidden_size)
        return IntermediateTensors({key: torch.zeros(shape, dtype=dtype, device=device) for key in keys})

    return make
