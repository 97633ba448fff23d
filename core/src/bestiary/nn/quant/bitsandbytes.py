"""Checkpoints of bitsandbytes, as transformers saves them: 4-bit (NF4, FP4) and 8-bit (LLM.int8).

    weight                                  uint8 [out * in / 2, 1]: codes in the order of the flattened weight, two a
                                            byte, the first in the high half
    weight.absmax                           fp32 [blocks], the scale of each block of the flattened weight; or uint8,
                                            quantized once more: ``nested_quant_map[absmax] * nested_absmax + offset``
    weight.quant_map, weight.nested_…       fp32: the codes' numbers, and the same of the scales
    weight.quant_state.bitsandbytes__nf4    uint8: a JSON text with kind, shape, block sizes and offset

    weight, SCB, weight_format              int8 [out, in], fp32 [out], uint8: ``weight * SCB / 127``

LLM.int8 multiplies int8 activations but for outliers; here its weights multiply plain activations, which is more exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn.embedding import VocabParallelEmbedding

from .base import QuantizeMethodBase
from .checkpoint import CheckpointConfig
from .codebook import CODEBOOKS, CodebookLinearMethod
from .fields import Fields
from .int8 import Int8LinearMethod
from .names import matches_any

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that share a scale. All are multiples of the first, so scales are kept for every `BLOCKS[0]` of them."""
_LONGEST_STATE = 4096
_STATE = "quant_state.bitsandbytes__"
_ALSO = (
    "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "llm_int8_threshold", "_load_in_4bit", "_load_in_8bit",
)  # fmt: skip


class BitsAndBytesConfig(CheckpointConfig):
    """`quant_method` "bitsandbytes", of checkpoints that hold quantized weights."""

    name = "bitsandbytes"
    markers = ("weight.absmax", "SCB")

    def __init__(self, kind: Any, skipped: tuple[str, ...]) -> None:
        """`kind`: "nf4", "fp4" or "int8"."""
        super().__init__()
        self.kind = kind
        self.skipped = skipped

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BitsAndBytesConfig:
        fields = Fields(config)
        four, eight = fields.flag("load_in_4bit", False), fields.flag("load_in_8bit", False)
        if four == eight:
            raise fields.refused("load_in_4bit", "one of load_in_4bit and load_in_8bit is true", four)
        kind = fields.choice("bnb_4bit_quant_type", tuple(CODEBOOKS), "fp4")
        storage = fields.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")
        skipped = fields.names("llm_int8_skip_modules")
        fields.done(*_ALSO, storage)
        return cls(kind if four else "int8", skipped)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        method = super().get_quant_method(layer, prefix)
        if not isinstance(method, CodebookLinearMethod):
            return method
        width = layer.embedding_dim if isinstance(layer, VocabParallelEmbedding) else int(layer.input_size)  # type: ignore[arg-type]
        if width % 2:
            raise ConfigError(
                f"{prefix} has an odd number of inputs", field=prefix, value=width, limit="an even number"
            )
        return CodebookLinearMethod(kind=self.kind, group_size=math.gcd(width, BLOCKS[0]))

    def is_listed_plain(self, name: str) -> bool:
        return matches_any(name, self.skipped)

    def method_of_quantized(self, name: str) -> QuantizeMethodBase:
        if self.kind == "int8":
            return Int8LinearMethod()
        return CodebookLinearMethod(kind=self.kind, group_size=BLOCKS[0])

    def split(self, name: str) -> tuple[str, str]:
        head, dot, leaf = name.partition(".weight.")
        return (head, f"weight.{leaf}") if dot else super().split(name)

    def checkpoint_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """A 4-bit layer's tensors, which may come in any order, are held until its state and all it needs are there."""
        if self.kind == "int8":
            yield from super().checkpoint_weights(weights)
            return
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        for full_name, tensor in weights:
            name, parameter = self.split(full_name)
            if parameter == "bias" or not self.is_marked(name):
                yield full_name, tensor
                continue
            waiting.setdefault(name, {})[parameter] = tensor
            made = _assembled(name, waiting[name], self.kind)
            if made is not None:
                del waiting[name]
                yield from ((f"{name}.{parameter}", value) for parameter, value in made.items())
        if waiting:
            raise WeightsMismatch(
                f"{len(waiting)} quantized layer(s) lack a part of their state",
                details=[f"{name}: has only {', '.join(sorted(parts))}" for name, parts in waiting.items()],
            )

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if parameter == "SCB":
            yield "weight_scale", tensor.float() / 127
        elif parameter == "weight_format":
            if bool(tensor.any()):
                raise WeightsMismatch("int8 weights in a kernel's own order", limit="row-major (format 0)")
        else:
            yield parameter, tensor


def _assembled(name: str, parts: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor] | None:
    """The parameters of one layer, or None while something is missing."""
    key = next((each for each in parts if each.startswith(f"weight.{_STATE}")), None)
    if key is None or not {"weight", "weight.absmax", "weight.quant_map"} <= set(parts):
        return None
    state = _state(name, parts[key], kind)
    nested = state.get("nested_blocksize") is not None
    if nested and not {"weight.nested_absmax", "weight.nested_quant_map"} <= set(parts):
        return None
    if not torch.allclose(parts["weight.quant_map"].float(), torch.tensor(CODEBOOKS[kind]), atol=1e-6):
        raise WeightsMismatch(f"{name}: codes stand for other numbers than those of {kind}", limit=kind)
    rows, width = state["shape"]
    absmax = parts["weight.absmax"].flatten()
    if nested:
        within = torch.arange(len(absmax)) // int(state["nested_blocksize"])
        nested_absmax, numbers = parts["weight.nested_absmax"].float(), parts["weight.nested_quant_map"].float()
        _expect_count(name, "nested_absmax", nested_absmax, -(-len(absmax) // int(state["nested_blocksize"])))
        absmax = numbers[absmax.int()] * nested_absmax[within] + float(state["nested_offset"])
    _expect_count(name, "weight", parts["weight"], rows * width // 2)
    _expect_count(name, "absmax", absmax, -(-rows * width // state["blocksize"]))
    group = math.gcd(width, BLOCKS[0])
    block_of = torch.arange(rows * width // group) * group // state["blocksize"]
    codes = parts["weight"].view(rows, width // 2)
    return {
        "weight": (codes >> 4) | (codes << 4),
        "weight_scale": absmax.float()[block_of].view(rows, width // group),
    }


def _state(name: str, text: torch.Tensor, kind: str) -> dict[str, Any]:
    """The JSON text, checked."""
    field = f"{name}.weight.{_STATE}{kind}"
    if text.numel() > _LONGEST_STATE or text.dtype is not torch.uint8:
        raise WeightsMismatch(
            "the state of a quantized weight is no text", field=field, limit=f"{_LONGEST_STATE} bytes"
        )
    try:
        state = json.loads(bytes(text.tolist()))
    except ValueError as error:
        raise WeightsMismatch("the state of a quantized weight is no JSON", field=field, limit="JSON") from error
    rules: dict[str, Callable[[Any], bool]] = {
        "quant_type": lambda value: value == kind,
        "blocksize": lambda value: value in BLOCKS,
        "shape": lambda value: isinstance(value, list) and len(value) == 2 and all(_is_count(each) for each in value)
        and value[1] % 2 == 0,
        "nested_blocksize": lambda value: value is None or _is_count(value),
        "nested_offset": lambda value: value is None or (isinstance(value, float) and math.isfinite(value)),
    }  # fmt: skip
    for key, right in rules.items():
        value = state.get(key) if isinstance(state, dict) else None
        if not right(value):
            raise WeightsMismatch(
                f"{field}: {key} is refused", field=key, value=value,
                limit={"quant_type": kind, "blocksize": f"one of {BLOCKS}"}.get(key, "as bitsandbytes writes it"),
            )  # fmt: skip
    if state.get("nested_blocksize") is not None and state.get("nested_offset") is None:
        raise WeightsMismatch(f"{field}: nested_offset is refused", field="nested_offset", limit="given")
    found: dict[str, Any] = state
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**32


def _expect_count(name: str, what: str, tensor: torch.Tensor, count: int) -> None:
    if tensor.numel() != count:
        raise WeightsMismatch(
            f"{name}: expected {count} elements of {what}, the checkpoint has {tensor.numel()}",
            field=f"{name}.{what}", limit=count, value=tensor.numel(),
        )  # fmt: skip
