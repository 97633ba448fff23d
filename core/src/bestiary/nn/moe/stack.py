"""`ExpertStack`: the same linear layer of every expert, its parameters stacked.

Each expert's layer is an ordinary member of the linear family, and its parameters are views of the stacked ones. What
the family can do, the experts can: tensor-parallel shards, biases, every quantization method, loading part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.ops.moe import fused_experts
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product, stacked, whole
from bestiary.nn.quant.base import QuantizationConfig, UnquantizedLinearMethod
from bestiary.nn.weights.fill import load_into, set_weight_attrs


class ExpertStack:
    """The layers of all slots of this rank.

    Its `owner`, a module, registers the stacked parameters as ``<name>_<parameter>``: ``w13_weight``, for instance.

    Attributes:
        product: what all of them compute, stacked, once they are finished; None where it is more than one op, or is
            not stacked.
    """

    def __init__(self, owner: nn.Module, name: str, count: int, make: Callable[[], LinearBase]) -> None:
        self.owner = owner
        self.name = name
        self.layers = [make() for _ in range(count)]
        self._bound = self._packed = self._packed_apart = False
        self.product: Product | None = None
        self._register()

    @property
    def is_fused(self) -> bool:
        """Whether the stacked weight is all there is, plain or packed for `fused_experts`."""
        plain = isinstance(self.layers[0].quant_method, UnquantizedLinearMethod) and not self._packed_apart
        return (plain or self._packed) and self.layers[0].bias is None

    @property
    def weight(self) -> torch.Tensor:
        """``[slots, out, in]``, where `is_fused`."""
        return self._stacked("weight")

    def place(self, quant_config: QuantizationConfig | None, layer_names: Sequence[str]) -> None:
        before = list(self.layers[0]._parameters)
        for layer, layer_name in zip(self.layers, layer_names, strict=True):
            layer.layer_name = layer_name
            layer.place(quant_config)
        self._refuse_different_layouts()
        for name in before:
            self.owner._parameters.pop(f"{self.name}_{name}", None)
        self._register()

    def load(self, slots: Sequence[int], shard: int | None, parameter: str, loaded: torch.Tensor) -> str:
        """Load one expert's tensor into every slot that holds a copy; returns the stacked parameter's name."""
        self.bind()
        for slot in slots:
            param = self.layers[slot]._parameters.get(parameter)
            if param is None:
                known = ", ".join(name for name, each in self.layers[slot]._parameters.items() if each is not None)
                raise WeightsMismatch(f"experts have no {parameter!r} here", limit=f"one of {known}", value=parameter)
            load_into(param, loaded, shard)
        return f"{self.name}_{parameter}"

    def finish(self) -> None:
        self.bind()
        for layer in self.layers:
            layer.finish()
        self._pack()
        if not (self._packed or self._packed_apart):
            self._stack_again()
            self.product = self._whole_product()

    def _pack(self) -> None:
        weights = [layer._parameters["weight"] for layer in self.layers]
        if not all(isinstance(weight, PackedWeight) for weight in weights):
            return
        packed = fused_experts.pack(weights)
        self._packed, self._packed_apart = packed is not None, packed is None
        self.owner._parameters[f"{self.name}_weight"] = packed

    def bind(self) -> None:
        """Let every layer's parameters be views of the stacked ones, once these are real."""
        if self._bound:
            return
        for slot, layer in enumerate(self.layers):
            for name, param in layer._parameters.items():
                if param is not None:
                    held = self._stacked(name)
                    view = nn.Parameter(held.data[slot], requires_grad=False)
                    view.__dict__.update(param.__dict__)
                    view.__dict__["filled_parts"] = held.__dict__.setdefault("filled_parts", {})
                    layer._parameters[name] = view
        self._bound = True

    def _stack_again(self) -> None:
        """What methods made of the loaded tensors, or put beside them, is stacked as these are; what they took away
        goes."""
        found = [_tensors(layer) for layer in self.layers]
        for name in self._registered - found[0].keys():
            self.owner._parameters.pop(f"{self.name}_{name}", None)
        for name in found[0]:
            tensors = [each for of_layer in found if (each := of_layer.get(name)) is not None]
            alike = len({(each.shape, each.dtype) for each in tensors}) == 1
            if not alike:  # each has its own from now on, and nobody what they were loaded into
                self.owner._parameters.pop(f"{self.name}_{name}", None)
            if len(tensors) < len(self.layers) or not alike or whole(tensors) is not None:
                continue
            made = nn.Parameter(torch.stack([each.detach() for each in tensors]), requires_grad=False)
            set_weight_attrs(made, {"num_weights": sum(getattr(each, "num_weights", 0) for each in tensors)})
            self.owner.register_parameter(f"{self.name}_{name}", made)
            for layer, own in zip(self.layers, made, strict=True):
                kept = layer._parameters if name in layer._parameters else vars(layer)
                kept[name] = nn.Parameter(own.detach(), requires_grad=False)

    def _whole_product(self) -> Product | None:
        products = [layer.quant_method.product(layer) for layer in self.layers]
        known = [each for each in products if each is not None]
        return stacked(known, [layer.own_bias for layer in self.layers]) if len(known) == len(products) else None

    def _refuse_different_layouts(self) -> None:
        """Experts lie stacked: all of them, or none, are quantized, and in one way."""
        first = _layout(self.layers[0])
        for layer in self.layers[1:]:
            if _layout(layer) != first:
                raise ConfigError(
                    f"{layer.layer_name} is quantized differently than {self.layers[0].layer_name}",
                    code="BAD_QUANTIZATION", field="quantization_config", value=layer.layer_name,
                    limit="the experts of a layer are quantized alike",
                )  # fmt: skip

    def _stacked(self, name: str) -> nn.Parameter:
        param = self.owner._parameters[f"{self.name}_{name}"]
        if param is None or param.is_meta:
            raise WeightsMismatch(f"{self.name}_{name} holds no memory yet: the model was not materialized")
        return param

    def _register(self) -> None:
        self._registered = {name for name, param in self.layers[0]._parameters.items() if param is not None}
        for name, param in self.layers[0]._parameters.items():
            if param is not None:
                shape = (len(self.layers), *param.shape)
                made = torch.empty(shape, dtype=param.dtype, device="meta")
                held = nn.Parameter(made, requires_grad=False)
                if hasattr(param, "num_weights"):
                    held.__dict__["num_weights"] = param.num_weights * len(self.layers)
                self.owner.register_parameter(f"{self.name}_{name}", held)


def _layout(layer: LinearBase) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (param.shape, param.dtype) for name, param in layer._parameters.items() if param is not None}


def _tensors(layer: LinearBase) -> dict[str, torch.Tensor]:
    """A layer's parameters, and the tensors that its method keeps beside them, but for what is packed."""
    found = {**vars(layer), **layer._parameters}
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, torch.Tensor) and not isinstance(each, PackedWeight)
    }


def tensors_of(layer: LinearBase) -> list[torch.Tensor]:
    """A layer's tensors, in the order of their names: parameters, buffers, and what its method keeps beside them."""
    found = {**vars(layer.quant_method), **vars(layer), **layer._parameters, **layer._buffers}
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return [tensors[name].detach() for name in sorted(tensors)]
