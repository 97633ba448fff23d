"""The attention layer of a model file. It knows its geometry; where keys and values lie is the forward context's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError
from bestiary.nn.context import get_forward_context

from .backend import AttentionBackend, AttentionSpec, AttentionType
from .base import AttentionLayerBase, cache_config_or_scopes, cache_dtype_of, refuse
from .mask import is_cached
from .metadata import AttentionMetadata


class Attention(AttentionLayerBase):
    """Multi-head attention with a paged cache; all head counts are this rank's own.

    Values may be narrower or wider than keys (`head_size_v`): the narrower of the two is filled up with zeros, which
    changes neither scores nor sums, so that every backend sees heads of one size.

    Attributes:
        sinks: the parameter given, the same object as its owner's.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: Sequence[float] | Tensor | None = None,
        cache_config: Any = None,
        quant_config: Any = None,
        logits_soft_cap: float | None = None,
        per_layer_sliding_window: int | None = None,
        prefix: str = "",
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        attn_backend: AttentionBackend | None = None,
        sinks: nn.Parameter | None = None,
        head_size_v: int | None = None,
        **extra: Any,
    ) -> None:
        """`quant_config` is accepted and ignored: the placement walk supplies it. By its `prefix` a later layer may say
        that it shares this one's cache; the layer's own name comes from the walk.

        `cache_config` gives the cache's dtype and, where `per_layer_sliding_window` is None, the window; the build
        scope's is used where it is None. Any other keyword that asks for something is a `ConfigError` naming it.
        """
        super().__init__(prefix, kv_sharing_target_layer_name)
        if per_layer_sliding_window is not None and not isinstance(per_layer_sliding_window, int):
            raise ConfigError(
                "a layer has one window", field="sliding_window", value=per_layer_sliding_window, limit="an integer"
            )
        refuse(type(self).__name__, extra)
        cache_config = cache_config_or_scopes(cache_config)
        if per_layer_sliding_window is None and cache_config is not None:
            per_layer_sliding_window = cache_config.sliding_window
        self.spec = AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=_kv_heads(num_heads, num_kv_heads),
            head_size=max(head_size, head_size_v or 0),
            scale=scale,
            sliding_window=per_layer_sliding_window or None,
            logits_soft_cap=logits_soft_cap or None,
            alibi_slopes=None if alibi_slopes is None else tuple(float(slope) for slope in alibi_slopes),
            has_sinks=sinks is not None,
            attn_type=AttentionType(attn_type),
            cache_dtype=cache_dtype_of(cache_config),
        )
        self.num_heads = num_heads
        self.num_kv_heads = self.spec.num_kv_heads
        self.head_size, self.head_size_v = head_size, head_size_v or head_size
        self.scale, self.sliding_window, self.attn_type = scale, self.spec.sliding_window, self.spec.attn_type
        self.backend = attn_backend
        self.sinks = sinks

    def forward(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, output_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Attend within each sequence of the running step.

        Args:
            query: ``[tokens, num_heads * head_size]``; here and below heads may be a dimension of their own.
            key, value: ``[tokens, num_kv_heads * head_size]`` (of values `head_size_v`), unused by a layer that shares
                another's cache; for cross attention those of the encoder's tokens, or None in a step that brings none.
            output_shape: accepted and ignored: the layer knows it.

        Returns:
            ``[tokens, num_heads * head_size_v]``.
        """
        self.bound_backend()
        context = get_forward_context()
        keys = values = None
        if self.kv_sharing_target_layer_name is None and key is not None and value is not None:
            keys = self._by_head(key, self.num_kv_heads, self.head_size)
            values = self._by_head(value, self.num_kv_heads, self.head_size_v)
        queries = self._by_head(query, self.num_heads, self.head_size)
        if self.k_scale != 1.0:  # a score is the same with the query multiplied and the key divided
            queries, keys = queries * self.k_scale, None if keys is None else keys / self.k_scale
        if self.v_scale != 1.0:
            values = None if values is None else values / self.v_scale
        cache = self.cache_of(context.kv_caches) if is_cached(self.spec) else query.new_empty(0)
        out = self._attend(queries, keys, values, cache, context.attention)[..., : self.head_size_v]
        out = out.reshape(query.shape[0], -1)
        return out if self.v_scale == 1.0 else out * self.v_scale

    def _attend(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """By head, all of the spec's `head_size`."""
        return self.bound_backend().forward(query, key, value, cache, metadata, self.spec, self.sinks)

    def _by_head(self, flat: Tensor, heads: int, size: int) -> Tensor:
        by_head = flat.reshape(flat.shape[0], heads, size)
        return by_head if size == self.spec.head_size else F.pad(by_head, (0, self.spec.head_size - size))

    def extra_repr(self) -> str:
        spec = self.spec
        return f"heads={spec.num_heads}, kv_heads={spec.num_kv_heads}, head_size={spec.head_size}, {spec.attn_type}"


class EncoderOnlyAttention(Attention):
    """Bidirectional attention of an encoder-only model: no cache, nothing kept."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        *,
        attn_type: str | None = None,
        **options: Any,
    ) -> None:
        """As `Attention`, without the choice of a type."""
        if attn_type not in (None, AttentionType.ENCODER_ONLY):
            raise ConfigError(
                "EncoderOnlyAttention is encoder-only",
                code="UNSUPPORTED_LAYER",
                field="attn_type",
                value=attn_type,
                limit=AttentionType.ENCODER_ONLY.value,
            )
        super().__init__(num_heads, head_size, scale, num_kv_heads, attn_type=AttentionType.ENCODER_ONLY, **options)


def _kv_heads(num_heads: int, num_kv_heads: int | None) -> int:
    count = num_heads if num_kv_heads is None else num_kv_heads
    if count < 1 or num_heads % count:
        raise ConfigError(
            "query heads are not shared evenly", field="num_kv_heads", value=count, limit=f"a divisor of {num_heads}"
        )
    return count
