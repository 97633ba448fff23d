"""Checkpoints of GPTQ (arXiv 2210.17323) as AutoGPTQ and GPTQModel write them.

    qweight   int32 [in * bits / 32, out]       codes packed along the inputs, the first in the lowest bits
    qzeros    int32 [groups, out * bits / 32]   zero points packed along the outputs; version 1 stores them less one
    scales    fp16  [groups, out]
    g_idx     int32 [in]                        the group of each input

A weight is ``(code - zero) * scale``. Version 1 stores a zero point of 0 as the largest code, hence ``& mask``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bestiary.api.errors import WeightsMismatch

from .base import QuantizeMethodBase
from .checkpoint import CheckpointConfig, expect
from .fields import Fields
from .grouped import GroupedLinearMethod
from .names import matches_any
from .pattern import Pattern
from .unpack import codes_in_bytes, codes_in_words

_HOW_IT_WAS_MADE = (
    "act_group_aware", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_percent",
    "dataset", "disable_exllama", "exllama_config", "is_marlin_format", "max_input_length", "meta",
    "model_file_base_name",
    "model_name_or_path", "model_seqlen", "module_name_preceding_first_block", "mse",
    "pack_dtype", "pad_token_id", "quantizer", "static_groups", "sym", "tokenizer", "true_sequential", "use_cuda_fp16",
    "use_exllama", "version",
)  # fmt: skip


class GptqConfig(CheckpointConfig):
    """`quant_method` "gptq", of 4 or 8 bits, with or without act order.

    `dynamic` of GPTQModel is read: a layer whose name matches a ``-:`` expression is plain, one that matches another
    has the bits, group size and order given there.
    """

    name = "gptq"
    markers = ("qweight",)

    def __init__(
        self,
        method: GroupedLinearMethod,
        zeros_less_one: bool,
        quantizes_head: bool,
        exceptions: list[tuple[Pattern, GroupedLinearMethod | None]],
        only: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.method = method
        self.zeros_less_one = zeros_less_one
        self.quantizes_head = quantizes_head
        self.exceptions = exceptions
        self.only = only

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GptqConfig:
        fields = Fields(config)
        method = _method(fields)
        stored = fields.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        head = fields.flag("lm_head", False)
        only = fields.nested_names("modules_in_block_to_quantize")
        dynamic = fields.parts("dynamic")
        exceptions = [] if dynamic is None else [_exception(text, dynamic, method) for text in dynamic.left]
        fields.absent("adapter", "adapters inside a quantized checkpoint are not read")
        fields.done(*_HOW_IT_WAS_MADE)
        return cls(method, stored == "gptq", head, exceptions, only)

    def method_of_quantized(self, name: str) -> QuantizeMethodBase:
        return self._exception(name) or self.method

    def is_listed_plain(self, name: str) -> bool:
        left_out = self.only and not matches_any(name, self.only) and not name.endswith("lm_head")
        return bool(left_out) or self._exception(name) is None

    def _exception(self, name: str) -> GroupedLinearMethod | None:
        """What the first expression in `dynamic` says that matches; the usual method where none does."""
        found = (method for pattern, method in self.exceptions if pattern.matches(name))
        return next(found, self.method)

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if not isinstance(method, GroupedLinearMethod):
            raise TypeError(f"{method} is no method of GPTQ")
        if parameter == "qweight":
            yield "weight", codes_in_bytes(expect(tensor, torch.int32, "qweight").t())
        elif parameter == "qzeros":
            zeros = codes_in_words(expect(tensor, torch.int32, "qzeros"), method.bits)
            if self.zeros_less_one:
                zeros = (zeros + 1) & (2**method.bits - 1)
            yield "weight_zero", zeros.t()
        elif parameter == "scales":
            yield "weight_scale", tensor.t()
        elif parameter == "g_idx" and method.ordered:
            yield "group_of", tensor
        elif parameter == "g_idx":
            _refuse_other_order(tensor, method.group_size or len(tensor))
        else:
            yield parameter, tensor


def _method(fields: Fields, default: GroupedLinearMethod | None = None) -> GroupedLinearMethod:
    """bits, group_size and desc_act; required where there is no default of another layer's."""
    bits = fields.choice("bits", (4, 8), None if default is None else default.bits)
    group = fields.group_size(default=None if default is None else default.group_size or -1)
    ordered = fields.flag("desc_act", default is not None and default.ordered)
    return GroupedLinearMethod(bits=bits, group_size=group, ordered=ordered and group is not None)


def _exception(text: str, dynamic: Fields, usual: GroupedLinearMethod) -> tuple[Pattern, GroupedLinearMethod | None]:
    pattern = Pattern(text.removeprefix("-:").removeprefix("+:"), dynamic.where)
    own = dynamic.parts(text)
    if text.startswith("-:"):
        return pattern, None
    if own is None:
        return pattern, usual
    method = _method(own, usual)
    own.done(*_HOW_IT_WAS_MADE)
    return pattern, method


def _refuse_other_order(group_of: torch.Tensor, group: int) -> None:
    if not torch.equal(group_of.long(), torch.arange(len(group_of)) // group):
        raise WeightsMismatch(
            "groups are in an order of their own, and desc_act is false",
            limit=f"inputs in groups of {group}, one after another", value=group_of[:8].tolist(),
        )  # fmt: skip
