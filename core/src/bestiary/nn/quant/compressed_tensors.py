"""Checkpoints of compressed-tensors, as LLM Compressor writes them: groups of layers, each with a scheme of its own.

pack-quantized                    weight_packed int32 [out, in * bits / 32], codes plus half their range, the first in
                                  the lowest bits; weight_shape; weight_scale [out, groups]; weight_g_idx [in];
                                  weight_zero_point int32 [out * bits / 32, groups], packed along the outputs
int-quantized, naive-quantized    weight int8 [out, in], weight_scale, input_scale, …
float-quantized, naive-quantized  weight e4m3 [out, in], weight_scale, input_scale, …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bestiary.api.errors import WeightsMismatch

from .base import QuantizeMethodBase
from .checkpoint import CheckpointConfig, expect
from .fields import Fields
from .fp8 import Fp8LinearMethod
from .grouped import GroupedLinearMethod
from .int8 import Int8LinearMethod
from .names import matches_any
from .pattern import Pattern
from .unpack import codes_in_bytes, codes_in_words

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_MIXED = "mixed-precision"
_MOST_GROUPS = 256
_TUNING = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")


class Names:
    """A list of targets or exceptions: names of layers, the class of all linear layers, or ``re:`` expressions."""

    def __init__(self, entries: tuple[str, ...], field: str) -> None:
        self.everything = "Linear" in entries
        self.patterns = [Pattern(each[3:], field) for each in entries if each.startswith("re:")]
        self.literal = tuple(each for each in entries if not each.startswith("re:"))

    def mean(self, name: str) -> bool:
        return any(each.matches(name) for each in self.patterns) or matches_any(name, self.literal)


class CompressedTensorsConfig(CheckpointConfig):
    """`quant_method` "compressed-tensors": W4A16, W8A16, W8A8 and fp8; the first group that means a layer wins."""

    name = "compressed-tensors"
    markers = ("weight_packed", "weight_scale")
    quantizes_head = True

    def __init__(self, groups: list[tuple[Names, QuantizeMethodBase]], ignored: Names) -> None:
        super().__init__()
        self.groups = groups
        self.ignored = ignored

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedTensorsConfig:
        fields = Fields(config)
        fields.choice("quantization_status", ("compressed", "frozen"), "compressed")
        stored = fields.choice("format", (*FORMATS, _MIXED))
        ignored = Names(fields.names("ignore"), "quantization_config.ignore")
        sparsity = fields.parts("sparsity_config")
        if sparsity is not None:
            sparsity.choice("format", ("dense",), "dense")
        _refuse_if_full(fields, "transform_config", "rotations of weights are not implemented")
        groups = fields.parts("config_groups")
        if groups is None:
            raise fields.refused("config_groups", "an object of groups", "absent")
        if not 0 < len(groups.left) <= _MOST_GROUPS:
            raise fields.refused("config_groups", f"1 to {_MOST_GROUPS} groups", len(groups.left))
        made = [_group(part, stored) for name in groups.left if (part := groups.parts(name)) is not None]
        fields.done("kv_cache_scheme", "global_compression_ratio", "version")
        return cls(made, ignored)

    def is_listed_plain(self, name: str) -> bool:
        return self.ignored.mean(name)

    def method_of_quantized(self, name: str) -> QuantizeMethodBase | None:
        named = next((method for names, method in self.groups if names.mean(name)), None)
        return named or next((method for names, method in self.groups if names.everything), None)

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        symmetric = not isinstance(method, GroupedLinearMethod) or method.symmetric
        if parameter == "weight_zero_point" and symmetric:
            if bool(tensor.to(torch.int32).any()):
                raise WeightsMismatch("zero points other than 0, and weights are declared symmetric", limit="0")
        elif isinstance(method, GroupedLinearMethod):
            yield from _codes(parameter, tensor, method.bits)
        else:
            yield parameter, tensor


def _codes(parameter: str, tensor: torch.Tensor, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a `GroupedLinearMethod`; codes and zero points are stored less half their range, or packed."""
    half = 2 ** (bits - 1)
    if parameter == "weight_packed":
        yield "weight", codes_in_bytes(expect(tensor, torch.int32, parameter))
    elif parameter == "weight":
        yield "weight", (expect(tensor, torch.int8, parameter).to(torch.int16) + half).to(torch.uint8)
    elif parameter == "weight_scale":
        yield parameter, tensor
    elif parameter == "weight_zero_point" and tensor.dtype is torch.int32:
        yield "weight_zero", codes_in_words(expect(tensor, torch.int32, parameter).t(), bits).t()
    elif parameter == "weight_zero_point":
        yield "weight_zero", (tensor.to(torch.int16) + half).to(torch.uint8)
    elif parameter == "weight_g_idx":
        yield "group_of", tensor
    elif parameter != "weight_shape":
        yield parameter, tensor


def _group(fields: Fields, stored: str) -> tuple[Names, QuantizeMethodBase]:
    targets = fields.names("targets")
    own = fields.choice("format", FORMATS, None if stored == _MIXED else stored)
    weights, inputs = fields.parts("weights"), fields.parts("input_activations")
    _refuse_if_full(fields, "output_activations", "outputs are not quantized here")
    if weights is None:
        raise fields.refused("weights", "an object: how weights are quantized", "absent")
    method = _method(weights, inputs, own)
    fields.done()
    return Names(targets, f"{fields.where}.targets"), method


def _method(weights: Fields, inputs: Fields | None, stored: str) -> QuantizeMethodBase:
    kind = weights.choice("type", ("int", "float"))
    bits = weights.choice("num_bits", (4, 8) if kind == "int" else (8,))
    strategy = weights.choice("strategy", ("tensor", "channel", "group", "block"))
    symmetric = weights.flag("symmetric", True)
    group = weights.group_size(default=-1)
    block = weights.counts("block_structure", 2) or (128, 128)
    order = weights.choice("actorder", ("group", "dynamic", "weight", "static"), "weight")
    weights.absent("dynamic", "weights have stored scales")
    weights.done(*_TUNING)
    timing, zero = (None, True) if inputs is None else _activations(inputs, kind)
    if kind == "float":
        return _float(weights, strategy, (block[0], block[1]), timing, symmetric and zero)
    by_row = strategy == "channel" or (strategy == "tensor" and stored != "pack-quantized")
    if bits == 8 and symmetric and by_row and (timing is not None or stored != "pack-quantized"):
        if timing == "group":
            raise weights.refused("input_activations.strategy", "token or tensor, for int8", timing)
        return Int8LinearMethod(activations=timing, symmetric=zero, per_tensor=strategy == "tensor")
    if timing is not None or strategy not in ("channel", "group"):
        rule = "channel or group; beside quantized activations 8 bits, symmetric, channel or tensor"
        raise weights.refused("strategy", rule, strategy)
    size = group if strategy == "group" else None
    ordered = order in ("group", "dynamic") and size is not None
    return GroupedLinearMethod(bits=bits, group_size=size, ordered=ordered, symmetric=symmetric)


def _float(fields: Fields, strategy: str, block: tuple[int, int], timing: Any, symmetric: bool) -> Fp8LinearMethod:
    if not symmetric:
        raise fields.refused("symmetric", "true, for fp8", False)
    if strategy == "group" or (timing == "group" and strategy != "block"):
        raise fields.refused("strategy", "tensor, channel or block; activations by group only beside blocks", strategy)
    scales: Any = {"tensor": "tensor", "channel": "row", "block": "block"}[strategy]
    return Fp8LinearMethod(scales=scales, block=block, activations=timing)


def _activations(fields: Fields, kind: str) -> tuple[Any, bool]:
    """("token", "group" or "static"; whether symmetric)."""
    fields.choice("type", (kind,))
    fields.choice("num_bits", (8,))
    strategy = fields.choice("strategy", ("token", "tensor", "group"), "token")
    dynamic = fields.flag("dynamic", False)
    symmetric = fields.flag("symmetric", True)
    fields.group_size(default=-1)
    fields.done(*_TUNING, "actorder", "block_structure")
    if not dynamic and strategy != "tensor":
        raise fields.refused("strategy", "tensor, where activations have stored scales", strategy)
    if dynamic and strategy == "tensor":
        raise fields.refused("strategy", "token or group, where scales are found while running", strategy)
    return (strategy if dynamic else "static"), symmetric


def _refuse_if_full(fields: Fields, name: str, why: str) -> None:
    """As `Fields.absent`, for objects whose every field may be empty."""
    value = fields.take(name)
    if isinstance(value, Mapping) and not any(value.values()):
        return
    if value:
        raise fields.refused(name, f"absent: {why}", value)
