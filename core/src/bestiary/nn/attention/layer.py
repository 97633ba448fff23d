"""The attention layer of a model file. It knows its geometry; where keys and values lie is the forward context's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError
from bestiary.nn.context import get_forward_context
from bestiary.nn.rotary.embedding import RotaryEmbedding

from .backend import AttentionBackend, AttentionSpec, AttentionType
from .base import AttentionLayerBase, cache_config_or_scopes, cache_dtype_of, refuse
from .heads import HeadTransform
from .mask import is_cached, key_geometry
from .metadata import AttentionMetadata


class Attention(AttentionLayerBase):
    """Multi-head attention with a paged cache; all head counts are this rank's own.

    Values may be narrower or wider than keys (`head_size_v`): the narrower of the two is filled up with zeros, which
    changes neither scores nor sums, so that every backend sees heads of one size.

    Attributes:
        sinks: the parameter given, the same object as its owner's.
        heads: what is done to queries and keys first; None where who calls has done it.
        reads_own_keys: whether it attends to a step's keys and values as they come, beside those in the cache.
    """

    reads_own_keys: ClassVar[bool] = False

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
        *,
        rotary_emb: RotaryEmbedding | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        **extra: Any,
    ) -> None:
        """`rotary_emb`, and norms of every head's queries and keys, are applied by `forward` to what it is given, in
        one kernel with the write to the cache where there is one. They stay the modules of who gives them.

        `quant_config` is accepted and ignored: the placement walk supplies it. By its `prefix` a later layer may say
        that it shares this one's cache; the layer's own name comes from the walk.

        `cache_config` gives the cache's dtype and, where `per_layer_sliding_window` is None, the window; the build
        scope's is used where it is None. Any other keyword that asks for something is a `ConfigError` naming it.
        """
        super().__init__(prefix, kv_sharing_target_layer_name)
        if per_layer_sliding_window is not None and not isinstance(per_layer_sliding_window, int):
            raise ConfigError(
                "a layer has one window", field="sliding_window", value=per_layer_sliding_window, limit="an integer"
            )
        if not scale > 0:
            raise ConfigError("scores are scaled by a positive number", field="scale", value=scale, limit="> 0")
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
        self.heads = HeadTransform.of(rotary_emb, q_norm, k_norm, head_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        output_shape: Sequence[int] | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend within each sequence of the running step.

        Args:
            query: ``[tokens, num_heads * head_size]``; here and below heads may be a dimension of their own.
            key, value: ``[tokens, num_kv_heads * head_size]`` (of values `head_size_v`), unused by a layer that shares
                another's cache; for cross attention those of the encoder's tokens, or None in a step that brings none.
            output_shape: accepted and ignored: the layer knows it.
            positions: int64 ``[tokens]``, of a layer that has a `rotary_emb`.

        Returns:
            ``[tokens, num_heads * head_size_v]``.
        """
        self.bound_backend()
        context = get_forward_context()
        if self.kv_sharing_target_layer_name is not None:
            key = value = None
        cache = self.cache_of(context.kv_caches) if is_cached(self.spec) else query.new_empty(0)
        if self.heads is not None and key is not None and value is not None and self._writes:
            slots = key_geometry(self.spec, context.attention).slot_mapping
            value = self._by_head(value, self.num_kv_heads, self.head_size_v).flatten(1)
            query = self.heads.into_cache(positions, query, key, value, cache, slots, self.k_scale, self.v_scale)
            queries, keys, values = self._by_head(query, self.num_heads, self.head_size), None, None
        else:
            if self.heads is not None:
                query, key = self.heads(positions, query, key)
            queries, keys, values = self._scaled(query, key, value)
        out = self._attend(queries, keys, values, cache, context.attention)[..., : self.head_size_v]
        out = out.reshape(query.shape[0], -1)
        return out if self.v_scale == 1.0 else out * self.v_scale

    @property
    def _writes(self) -> bool:
        """Whether keys and values go into the pages before the backend is asked, which then needs no others."""
        pages_only = is_cached(self.spec) and bool(getattr(self.backend, "reads_pages_only", False))
        return pages_only and not self.reads_own_keys and self.head_size == self.spec.head_size

    def _scaled(
        self, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """By head, keys and values divided by the cache's scales. A score is the same with the query multiplied."""
        queries, keys, values = self._by_head(query, self.num_heads, self.head_size), None, None
        if key is not None and value is not None:
            keys = self._by_head(key, self.num_kv_heads, self.head_size)
            values = self._by_head(value, self.num_kv_heads, self.head_size_v)
        if self.k_scale != 1.0:
            queries, keys = queries * self.k_scale, None if keys is None else keys / self.k_scale
        if self.v_scale != 1.0:
            values = None if values is None else values / self.v_scale
        return queries, keys, values

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
