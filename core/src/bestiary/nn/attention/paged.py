"""`PagedBackend`: what core's own backends share. They take every kind of layer, and keep the same pages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bestiary.api.errors import EngineError
from bestiary.nn.ops.attention import write_kv_cache

from . import pages
from .backend import AttentionSpec, AttentionType, KVCacheSpec
from .mask import is_cached, key_geometry
from .metadata import AttentionMetadata


class PagedBackend(ABC):
    """Writes this step's keys and values into the pages, then attends; a backend says how."""

    name: str
    takes: tuple[str, ...] = ()

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        """Between a decoder's positions and an encoder's there is no distance, and pages have no place for an int8
        cache's scales; everything else can run."""
        if spec.cache_dtype is torch.int8 and is_cached(spec):
            return "has no place for the scales of an int8 cache; fp8 needs none"
        cross = spec.attn_type is AttentionType.ENCODER_DECODER
        if cross and (spec.sliding_window is not None or spec.alibi_slopes is not None):
            return "cross attention has neither a sliding window nor ALiBi slopes"
        return None

    def cache_shape(self, spec: KVCacheSpec, num_blocks: int, block_size: int) -> Sequence[int]:
        return pages.cache_shape(spec, num_blocks, block_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        """As `AttentionBackend.forward`."""
        if key is not None and value is not None:
            value = self.marked(key, value)
            if is_cached(spec):
                write_kv_cache(kv_cache, key, value, key_geometry(spec, metadata).slot_mapping)
        return self.compute(query, key, value, kv_cache, metadata, spec, sinks)

    def marked(self, key: Tensor, value: Tensor) -> Tensor:
        """The values to keep for these keys; a backend whose scores hide what is not finite marks them here."""
        return value

    @abstractmethod
    def compute(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        """The same, the pages being up to date."""


def bidirectional(key: Tensor | None, value: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
    """The keys and values of an encoder's sequence, which come with its queries."""
    if key is None or value is None:
        raise EngineError("an encoder's attention needs keys and values")
    return key[rows], value[rows]
