"""`CheckpointConfig`: what formats of quantized checkpoints share.

A format says two things: which method a layer of the checkpoint has (`listed`, by its name there), and how its tensors
become the parameters of that method (`converted`). Tensors are converted as they stream in, one by one, before a
model's loader, a shard's arithmetic or an expert's stack sees them; so these know one layout, whatever the file has.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.moe.gate import GateLinear

from .base import QuantizationConfig, QuantizeMethodBase, UnquantizedLinearMethod
from .names import checkpoint_names, parts_of

logger = logging.getLogger("bestiary")

CACHE_SCALES = (
    "k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "output_scale", "k_zero_point", "v_zero_point",
)  # fmt: skip
"""Parameters that scale a quantized KV cache. Who loads a model takes what it can use of them first."""


class CheckpointConfig(QuantizationConfig):
    """Which of a model's layers are quantized, and with what.

    **What is stored decides.** A layer is quantized where the checkpoint has one of the `markers` for it, and plain
    where it has just a `weight`; the configuration's lists count where neither is known (dummy weights), since writers
    of checkpoints do not agree on what an entry means.
    """

    markers: tuple[str, ...] = ()
    """Names, below a layer's own, of tensors that only a quantized layer has."""
    quantizes_head = False
    """Whether the lists can mean the head."""

    def __init__(self) -> None:
        self._methods: dict[str, QuantizeMethodBase | None] = {}
        self._told = False

    @abstractmethod
    def method_of_quantized(self, name: str) -> QuantizeMethodBase | None:
        """The method of the checkpoint's layer with this full name, provided it is quantized; None if it cannot be."""

    @abstractmethod
    def is_listed_plain(self, name: str) -> bool:
        """Whether the configuration's lists leave the layer with this full name as it was."""

    def converted(
        self, parameter: str, tensor: torch.Tensor, method: QuantizeMethodBase
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The layer's parameters that a stored tensor gives; none where it holds nothing that the method needs."""
        yield parameter, tensor

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead):
            return None
        parts = parts_of(layer, prefix, self.packed_modules_mapping)
        methods = {part: self._of_part(layer, part) for part in dict.fromkeys((prefix, *parts))}
        if self._stored_method(prefix) is not _UNKNOWN:  # the checkpoint has the layer fused
            return methods[prefix]
        found = [methods[part] for part in parts]
        if any(each != found[0] for each in found):
            raise ConfigError(
                f"{prefix} is one layer here; in the checkpoint its parts are quantized differently",
                code="BAD_QUANTIZATION", field="quantization_config", value=prefix,
                limit="the same for " + ", ".join(part.rpartition(".")[2] for part in parts),
                details=[f"{part}: {methods[part] or UnquantizedLinearMethod()}" for part in parts],
            )  # fmt: skip
        return found[0]

    def _of_part(self, layer: nn.Module, part: str) -> QuantizeMethodBase | None:
        stored: Any = self._stored_method(part)
        if stored is not _UNKNOWN:
            return None if stored is None else cast(QuantizeMethodBase, stored)
        left_plain = isinstance(layer, GateLinear) or (isinstance(layer, ParallelLMHead) and not self.quantizes_head)
        if left_plain:
            return None
        names = checkpoint_names(part, self.mappers)
        return None if any(self.is_listed_plain(name) for name in names) else self._method(names[0])

    def _stored_method(self, part: str) -> Any:
        """The method of what is stored under one of the part's names; None if plain, `_UNKNOWN` if nothing is."""
        for name in checkpoint_names(part, self.mappers):
            if self.is_marked(name):
                return self._method(name)
            if f"{name}.weight" in self.stored:
                return None
        return _UNKNOWN

    def is_marked(self, name: str) -> bool:
        """Whether the checkpoint has a quantized layer of this full name."""
        return any(f"{name}.{marker}" in self.stored for marker in self.markers)

    def _method(self, name: str) -> QuantizeMethodBase | None:
        if name not in self._methods:
            self._methods[name] = self.method_of_quantized(name)
        return self._methods[name]

    def checkpoint_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for full_name, tensor in weights:
            name, parameter = self.split(full_name)
            if parameter in CACHE_SCALES:
                self._tell_of_cache()
                continue
            method = self._method(name) if self.is_marked(name) else None
            if method is None or parameter == "bias":
                yield full_name, tensor
                continue
            try:
                made = list(self.converted(parameter, tensor, method))
            except WeightsMismatch as error:
                raise WeightsMismatch(
                    f"{full_name}: {error.message}", field=full_name, limit=error.limit, value=error.value
                ) from error
            for new, value in made:
                yield f"{name}.{new}", value

    def split(self, name: str) -> tuple[str, str]:
        """A stored tensor's name as its layer's and its own below that."""
        head, _, leaf = name.rpartition(".")
        return head, leaf

    def _tell_of_cache(self) -> None:
        if not self._told:
            logger.warning(
                "the checkpoint's other scales for a quantized KV cache are left out: keys and values have one each"
            )
            self._told = True


_UNKNOWN: Any = object()


def expect(tensor: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
    """`tensor`, a matrix of `dtype`, or a `WeightsMismatch`."""
    if tensor.dtype is not dtype or tensor.dim() != 2:
        wanted = f"{what}: two dimensions of {str(dtype).removeprefix('torch.')}"
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise WeightsMismatch(f"expected {wanted}, the checkpoint has {found}", limit=wanted, value=found)
    return tensor
