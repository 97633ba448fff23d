"""The quantization hook: how a layer's weights are laid out, filled and applied.

A `QuantizationConfig` is asked once per layer, by full name, for a method; the method creates the layer's parameters,
repacks them after loading, and computes. Layers keep no other knowledge of number formats. A config that reads
checkpoints also says how their tensors become those parameters (`checkpoint_weights`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bestiary.nn.ops.linear import embedding, linear
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product
from bestiary.nn.scope import get_current_vllm_config_or_none
from bestiary.nn.weights.fill import set_weight_attrs
from bestiary.nn.weights.mapper import WeightsMapper

if TYPE_CHECKING:
    from bestiary.nn.linear_base import LinearBase


class QuantizeMethodBase(ABC):
    """How one kind of layer stores and applies its weights. `str` of it says so in a few words, for people."""

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the layer's parameters on the meta device; each carries `extra_weight_attrs` (its loader)."""

    @abstractmethod
    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x @ weight.T + bias`` for x of shape ``[..., input_size_per_partition]``."""

    def product(self, layer: nn.Module) -> Product | None:
        """What `apply` computes, as one op; None where it is more than that. The products of experts that have one
        are computed together, where a version of `grouped_experts` can; the others one by one."""
        return None

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` of the weight; only methods that can back an embedding define it."""
        raise TypeError(f"{type(self).__name__} cannot back an embedding")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Repack for the kernels; called once, after every parameter was filled. Nothing to do unless overridden."""
        return

    def packed(self, layer: nn.Module) -> PackedWeight | None:
        """What the ops in force make of the layer's weight, loaded or on the meta device; None where they leave it."""
        return None

    def bytes_added(self, layer: nn.Module) -> int:
        """What repacking adds to the parameters that `create_weights` made, in bytes; known before they are loaded."""
        return 0


class UnquantizedLinearMethod(QuantizeMethodBase):
    """One weight ``[sum(output_partition_sizes), input_size_per_partition]`` of the model's dtype, or of the one that
    matrices are kept in (`kept_dtype`)."""

    def __str__(self) -> str:
        return "plain"

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        shape = (sum(output_partition_sizes), input_size_per_partition)
        dtype = kept_dtype(params_dtype)
        weight = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
        set_weight_attrs(weight, {"output_dim": 0, "input_dim": 1, **extra_weight_attrs})
        layer.register_parameter("weight", weight)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, layer.weight, bias)  # type: ignore[arg-type]

    def product(self, layer: nn.Module) -> Product | None:
        return Product(linear, {"weight": layer.weight})  # type: ignore[dict-item]

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        keep_packed(layer, self.packed(layer))

    def packed(self, layer: nn.Module) -> PackedWeight | None:
        return linear.pack(layer.weight)

    def bytes_added(self, layer: nn.Module) -> int:
        return packed_bytes(layer, self.packed(layer))

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return embedding(ids, layer.weight)  # type: ignore[arg-type]


def kept_dtype(params_dtype: torch.dtype) -> torch.dtype:
    """A matrix's dtype in the model being built: `params_dtype`, or what the configuration keeps matrices in."""
    config = get_current_vllm_config_or_none()
    if config is None or params_dtype is not config.model_config.dtype:
        return params_dtype
    return config.model_config.weights_dtype or params_dtype


def keep_packed(layer: nn.Module, packed: PackedWeight | None, name: str = "weight") -> None:
    """Let a layer have what was packed of its parameter `name`, which goes; nothing was packed if it is None."""
    if packed is not None:
        packed.__dict__.update({**layer._parameters[name].__dict__, **packed.__dict__})
        layer._parameters[name] = packed


def packed_bytes(layer: nn.Module, packed: PackedWeight | None, name: str = "weight") -> int:
    """What `keep_packed` would add to a layer's bytes."""
    plain = layer._parameters[name]
    return 0 if packed is None or plain is None else packed.nbytes - plain.numel() * plain.dtype.itemsize


class QuantizationConfig(ABC):
    """One checkpoint's quantization, read from `quantization_config` or asked for by name.

    Attributes:
        rounds_activations: what is computed is more than a product with the weights that codes stand for. Set by
            methods that quantize while loading.

    Set before any layer is placed:
        packed_modules_mapping: the model's fusions (fused layer → the checkpoint's layers).
        mappers: what the checkpoint's names go through to become the model's.
        stored: the names of the checkpoint's tensors; empty where they are not known.
    """

    name: str = ""
    rounds_activations = False
    packed_modules_mapping: Mapping[str, list[str]] = {}
    mappers: Sequence[WeightsMapper] = ()
    stored: Collection[str] = frozenset()

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizationConfig:
        """Parse and check `quantization_config`; a bad field is a `ConfigError`."""

    @abstractmethod
    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method for the layer with this full name; None leaves it unquantized."""

    @classmethod
    def why_not(cls, device: str) -> str | None:
        """None where this runs on `device`, otherwise the reason in a few words; here: plain torch runs anywhere."""
        return None

    def checkpoint_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's tensors, each under its layer's name there, as parameters of that layer's method."""
        yield from weights


def method_for(layer: LinearBase | nn.Module, config: QuantizationConfig | None, prefix: str) -> QuantizeMethodBase:
    """What `config` says for this layer, unquantized where it says nothing."""
    method = None if config is None else config.get_quant_method(layer, prefix)
    return method or UnquantizedLinearMethod()
