"""Checkpoints of AWQ (arXiv 2306.00978) as AutoAWQ writes them ("gemm").

    qweight   int32 [in, out / 8]       4-bit codes packed along the outputs
    qzeros    int32 [groups, out / 8]   zero points, packed alike
    scales    fp16  [groups, out]

The eight codes of a word, from its lowest bits, are those of outputs 0, 2, 4, 6, 1, 3, 5, 7. A weight is
``(code - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bestiary.nn.ops.quant import packed

from .base import QuantizeMethodBase
from .checkpoint import CheckpointConfig, expect
from .fields import Fields
from .grouped import GroupedLinearMethod
from .names import matches_any
from .unpack import codes_in_words

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which code of a word, from its lowest bits, each of eight outputs has."""


class AwqConfig(CheckpointConfig):
    """`quant_method` "awq": 4 bits, zero points."""

    name = "awq"
    markers = ("qweight",)

    def __init__(self, method: GroupedLinearMethod, skipped: tuple[str, ...]) -> None:
        super().__init__()
        self.method = method
        self.skipped = skipped

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AwqConfig:
        fields = Fields({_FIRST_NAMES.get(name, name): value for name, value in config.items()})
        fields.choice("bits", (4,))
        group = fields.group_size()
        fields.choice("version", ("gemm", "GEMM"), "gemm")
        if not fields.flag("zero_point", True):
            raise fields.refused("zero_point", "true", False)
        skipped = fields.names("modules_to_not_convert")
        fields.done("backend", "do_fuse", "modules_to_fuse", "fuse_max_seq_len", "exllama_config", "sym", "desc_act")
        return cls(GroupedLinearMethod(bits=4, group_size=group), skipped)

    def method_of_quantized(self, name: str) -> QuantizeMethodBase:
        return self.method

    def is_listed_plain(self, name: str) -> bool:
        return matches_any(name, self.skipped)

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if parameter == "qweight":
            yield "weight", packed(in_order(expect(tensor, torch.int32, parameter)).t())
        elif parameter == "qzeros":
            yield "weight_zero", in_order(expect(tensor, torch.int32, parameter)).t()
        elif parameter == "scales":
            yield "weight_scale", tensor.t()
        else:
            yield parameter, tensor


_FIRST_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
"""What AutoAWQ's own file, `quant_config.json`, called them."""


def in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 ``[rows, out / 8]`` → uint8 codes ``[rows, out]``."""
    codes = codes_in_words(words, 4).view(words.shape[0], -1, 8)
    return codes[:, :, PLACES].reshape(words.shape[0], -1)
