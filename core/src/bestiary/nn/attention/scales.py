"""Scales of an fp8 KV cache: where checkpoints keep them, and how they reach the layers.

A layer's cache holds ``key / k_scale`` and ``value / v_scale``. Each is one number a layer. Writers of checkpoints name
them differently, always below the module that has the attention layer:

    self_attn.k_scale, self_attn.v_scale                       compressed-tensors
    self_attn.attn.k_scale, self_attn.attn.v_scale             as vLLM keeps them
    self_attn.k_proj.k_scale, self_attn.v_proj.v_scale         ModelOpt
    self_attn.k_proj.output_scale, self_attn.v_proj.output_scale
    self_attn.kv_scale                                         older, one for both
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.weights.fill import count_use

from .base import AttentionLayerBase

_LEAVES = {"k_scale": "k", "v_scale": "v", "kv_scale": "kv"}
_OUTPUTS = {"k_proj.output_scale": "k", "v_proj.output_scale": "v"}
_UNUSED = ("q_scale", "prob_scale")
"""Of products that are computed in fp8; here queries and probabilities keep their type."""


class CacheScales:
    """Takes the scales out of a stream of weights, and gives them to the layers of a model.

    Args:
        renamed: a checkpoint's name → the model's, or None where it has none.
    """

    def __init__(self, model: nn.Module, renamed: Callable[[str], str | None]) -> None:
        self._renamed = renamed
        layers = {module.layer_name: module for module in model.modules() if isinstance(module, AttentionLayerBase)}
        self._layers = layers
        self._by_parent = {name.rpartition(".")[0]: layer for name, layer in layers.items()}
        self._parameters = {name for name, _ in model.named_parameters()}
        self._found: dict[str, set[str]] = {}
        self._left_out: set[str] = set()

    def taken(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The stream without the scales of this model's layers.

        Raises:
            WeightsMismatch: a scale that is not one positive number.
        """
        for name, tensor in weights:
            kind = _kind(name)
            layer = self._layer_of(name) if kind is not None else None
            if layer is None or kind is None:
                yield name, tensor
            else:
                count_use()
                self._give(layer, kind, name, tensor)
        self._share()

    def notices(self) -> list[str]:
        """What to tell the user, once the stream has gone by."""
        told = []
        if self._left_out:
            told.append(
                f"the checkpoint's {', '.join(sorted(self._left_out))} are left out: "
                + ("products of attention are not in fp8" if self._quantized else "kv_cache_dtype=fp8 would use them")
            )
        without = [
            name for name, layer in self._quantized.items() if not layer.scale_parts <= self._found.get(name, set())
        ]
        if without:
            told.append(
                f"fp8 KV cache: the checkpoint lacks scales for {len(without)} of {len(self._quantized)} layers, "
                "whose keys or values are kept as they are (scale 1)"
            )
        return told

    @property
    def _quantized(self) -> Mapping[str, AttentionLayerBase]:
        """The layers with an fp8 cache of their own."""
        return {
            name: layer
            for name, layer in self._layers.items()
            if layer.scales_cache and layer.kv_sharing_target_layer_name is None
        }

    def _layer_of(self, name: str) -> AttentionLayerBase | None:
        found = self._renamed(name)
        if found in self._parameters:  # the model's own, of another meaning
            return None
        while found:
            found = found.rpartition(".")[0]
            if found in self._by_parent:
                return self._by_parent[found]
        return None

    def _give(self, layer: AttentionLayerBase, kind: str, name: str, tensor: torch.Tensor) -> None:
        if kind == "unused" or not layer.scales_cache:
            self._left_out.add(name.rpartition(".")[2])
            return
        scale = float(tensor) if tensor.numel() == 1 else float("nan")
        if not 0 < scale < float("inf"):
            raise WeightsMismatch(
                f"{name} is no scale for a KV cache", field=name,
                value=scale if tensor.numel() == 1 else list(tensor.shape), limit="one positive number a layer",
            )  # fmt: skip
        if "k" in kind:
            layer.k_scale = scale
        if "v" in kind:
            layer.v_scale = scale
        self._found.setdefault(layer.layer_name, set()).update(kind)

    def _share(self) -> None:
        """Who reads another layer's cache reads it by that layer's scales."""
        for layer in self._layers.values():
            target = self._layers.get(layer.kv_sharing_target_layer_name or "")
            if target is not None:
                layer.k_scale, layer.v_scale = target.k_scale, target.v_scale


def _kind(name: str) -> str | None:
    """ "k", "v", "kv", "unused", or None for what is no scale of a cache."""
    head, _, leaf = name.rpartition(".")
    if leaf in _UNUSED:
        return "unused"
    return _LEAVES.get(leaf) or _OUTPUTS.get(f"{head.rpartition('.')[2]}.{leaf}")
