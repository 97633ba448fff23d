"""The attention layer of a model file. It knows its geometry; where keys and values lie is the forward context's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError, UsageError
from bestiary.nn.context import get_forward_context
from bestiary.nn.rotary.embedding import RotaryEmbedding
from bestiary.nn.scope import get_current_vllm_config_or_none

from .backend import AttentionBackend, AttentionSpec, AttentionType, KVCacheSpec
from .heads import HeadTransform
from .mask import is_cached, key_geometry

_CACHE_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class Attention(nn.Module):
    """Multi-head attention with a paged cache; all head counts are this rank's own.

    Attributes:
        spec: the geometry, as backends see it.
        layer_name: the full name in the model, under which the context keeps the cache; set when the model is placed.
        backend: set when the model is finished.
        sinks: the parameter given, the same object as its owner's.
        heads: what is done to queries and keys first; None where who calls has done it.
        k_scale, v_scale: an fp8 cache holds keys and values divided by these; set while weights are loaded.
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
        attention_chunk_size: int | None = None,
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
        scope's is used where it is None. `head_size_v`: the width of values, where they are narrower than keys; the
        cache keeps both in the width of keys. `attn_backend`: what computes this layer, whatever computes others. Any
        other keyword that asks for something is a `ConfigError` naming it.
        """
        super().__init__()
        if per_layer_sliding_window is not None and not isinstance(per_layer_sliding_window, int):
            raise ConfigError(
                "a layer has one window", field="sliding_window", value=per_layer_sliding_window, limit="an integer"
            )
        if head_size_v is not None and head_size_v > head_size:
            extra["head_size_v"] = head_size_v
        _refuse(extra)
        scope = get_current_vllm_config_or_none()
        if cache_config is None and scope is not None:
            cache_config = scope.cache_config
        if per_layer_sliding_window is None and cache_config is not None:
            per_layer_sliding_window = cache_config.sliding_window
        self.spec = AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=_kv_heads(num_heads, num_kv_heads),
            head_size=head_size,
            scale=scale,
            sliding_window=per_layer_sliding_window or None,
            chunk=attention_chunk_size or None,
            logits_soft_cap=logits_soft_cap or None,
            alibi_slopes=None if alibi_slopes is None else tuple(float(slope) for slope in alibi_slopes),
            has_sinks=sinks is not None,
            attn_type=AttentionType(attn_type),
            cache_dtype=cache_dtype_of("auto" if cache_config is None else cache_config.cache_dtype),
        )
        self.num_heads = num_heads
        self.num_kv_heads = self.spec.num_kv_heads
        self.head_size, self.head_size_v = head_size, head_size_v or head_size
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.scale, self.sliding_window, self.attn_type = scale, self.spec.sliding_window, self.spec.attn_type
        self.prefix = prefix
        self.layer_name = ""
        self.backend = attn_backend
        self.sinks = sinks
        self.k_scale = self.v_scale = 1.0
        self.heads = HeadTransform.of(rotary_emb, q_norm, k_norm, head_size)

    @property
    def scales_cache(self) -> bool:
        """Whether the cache is fp8, to which a layer's keys and values are scaled; int8 rows have their own scales."""
        dtype = self.spec.cache_dtype
        return is_cached(self.spec) and dtype is not None and dtype.is_floating_point and dtype.itemsize == 1

    def get_kv_cache_spec(self) -> KVCacheSpec | None:
        """What this layer keeps a token; None where it keeps nothing, or reads another layer's cache."""
        if not is_cached(self.spec) or self.kv_sharing_target_layer_name is not None:
            return None
        spec = self.spec
        return KVCacheSpec(
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            dtype=spec.cache_dtype or torch.get_default_dtype(),
            sliding_window=spec.sliding_window,
        )

    def cache_shape(self, spec: KVCacheSpec, num_blocks: int, block_size: int) -> Sequence[int]:
        """Shape of this layer's cache tensor, which its backend decides."""
        if self.backend is None:
            raise EngineError(f"attention layer {self.layer_name!r} has no backend: the model was not finished")
        return self.backend.cache_shape(spec, num_blocks, block_size)

    def forward(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """Attend within each sequence of the running step.

        Args:
            query: ``[tokens, num_heads * head_size]``; here and below heads may be a dimension of their own.
            key, value: ``[tokens, num_kv_heads * head_size]``, unused by a layer that shares another's cache; for cross
                attention those of the encoder's tokens, or None in a step that brings none.
            positions: int64 ``[tokens]``, of a layer that has a `rotary_emb`.

        Returns:
            ``[tokens, num_heads * head_size_v]``.
        """
        if self.backend is None:
            raise EngineError(f"attention layer {self.layer_name!r} has no backend: the model was not finished")
        context = get_forward_context()
        if self.kv_sharing_target_layer_name is not None:
            key = value = None
        cache = self._cache(context.kv_caches) if is_cached(self.spec) else query.new_empty(0)
        if self.heads is not None and key is not None and value is not None and self._writes:
            slots = key_geometry(self.spec, context.attention).slot_mapping
            value = self._wide(value).flatten(1)
            query = self.heads.into_cache(positions, query, key, value, cache, slots, self.k_scale, self.v_scale)
            queries, keys, values = self._by_head(query, self.num_heads), None, None
        else:
            if self.heads is not None:
                query, key = self.heads(positions, query, key)
            queries, keys, values = self._scaled(query, key, value)
        out = self.backend.forward(queries, keys, values, cache, context.attention, self.spec, self.sinks)
        out = out[..., : self.head_size_v].reshape(query.shape[0], -1)
        return out if self.v_scale == 1.0 else out * self.v_scale

    @property
    def _writes(self) -> bool:
        """Whether the backend leaves it to the layer to write keys and values into the pages."""
        return is_cached(self.spec) and bool(getattr(self.backend, "reads_pages_only", False))

    def _scaled(
        self, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """By head, keys and values divided by the cache's scales. A score is the same with the query multiplied."""
        queries, keys, values = self._by_head(query, self.num_heads), None, None
        if key is not None and value is not None:
            keys, values = self._by_head(key, self.num_kv_heads), self._wide(value)
        if self.k_scale != 1.0:
            queries, keys = queries * self.k_scale, None if keys is None else keys / self.k_scale
        if self.v_scale != 1.0:
            values = None if values is None else values / self.v_scale
        return queries, keys, values

    def _cache(self, kv_caches: Mapping[str, object]) -> Tensor:
        name = self.kv_sharing_target_layer_name or self.layer_name
        try:
            return cast(Tensor, kv_caches[name])
        except KeyError as error:
            raise EngineError(f"no KV cache was made for layer {name!r}", field="layer_name", value=name) from error

    def _wide(self, value: Tensor) -> Tensor:
        """Values by head, in the width of keys."""
        by_head = value.reshape(value.shape[0], self.num_kv_heads, self.head_size_v)
        return by_head if self.head_size_v == self.head_size else F.pad(by_head, (0, self.head_size - self.head_size_v))

    def _by_head(self, flat: Tensor, heads: int) -> Tensor:
        return flat.reshape(flat.shape[0], heads, self.head_size)

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


def _refuse(extra: dict[str, Any]) -> None:
    """Refuse keywords that ask for what no backend does; None and False ask for nothing."""
    asked = [name for name, value in extra.items() if value is not None and value is not False]
    if asked:
        raise ConfigError(
            f"unsupported layer: Attention with {', '.join(asked)}",
            code="UNSUPPORTED_LAYER",
            field=asked[0],
            value=extra[asked[0]],
        )


def _kv_heads(num_heads: int, num_kv_heads: int | None) -> int:
    count = num_heads if num_kv_heads is None else num_kv_heads
    if count < 1 or num_heads % count:
        raise ConfigError(
            "query heads are not shared evenly", field="num_kv_heads", value=count, limit=f"a divisor of {num_heads}"
        )
    return count


def cache_dtype_of(name: str) -> torch.dtype:
    """ "auto" is the model's dtype, which is the default one inside a build scope."""
    if name == "auto":
        return torch.get_default_dtype()
    if name not in _CACHE_DTYPES:
        raise UsageError(
            "the KV cache cannot be kept in this dtype",
            field="cache_dtype",
            value=name,
            limit=f"one of auto, {', '.join(_CACHE_DTYPES)}",
        )
    return _CACHE_DTYPES[name]
