"""What the engine knows of every layer that keeps something for each token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError, UsageError
from bestiary.nn.scope import get_current_vllm_config_or_none

from .backend import AttentionBackend, AttentionSpec, KVCacheSpec
from .mask import is_cached

_CACHE_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class AttentionLayerBase(nn.Module, ABC):
    """A layer with a place in the paged cache: the engine finds it by this class, and asks it for its two specs.

    Attributes:
        spec: its geometry, as backends see it.
        layer_name: the full name in the model, under which the context keeps the cache; set when the model is placed.
        prefix: the name its file gave it, by which another layer may say that it shares this one's cache.
        kv_sharing_target_layer_name: whose cache it reads and does not write; None where it has its own.
        backend: set when the engine has chosen one.
        k_scale, v_scale: an fp8 cache holds what is kept divided by these; set while weights are loaded.
        scale_parts: which of the two ("k", "v") it has a use for.
    """

    spec: AttentionSpec
    scale_parts = frozenset("kv")

    def __init__(self, prefix: str = "", kv_sharing_target_layer_name: str | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.layer_name = ""
        self.backend: AttentionBackend | None = None
        self.k_scale = self.v_scale = 1.0

    @property
    def scales_cache(self) -> bool:
        """Whether the cache is fp8, to which what is kept is scaled; int8 rows have their own scales."""
        dtype = self.spec.cache_dtype
        return is_cached(self.spec) and dtype is not None and dtype.is_floating_point and dtype.itemsize == 1

    @property
    def reads_ahead(self) -> bool:
        """Whether a prompt's tokens see those after them: it has to be computed whole, and no part of it is shared."""
        return False

    @property
    def more_specs(self) -> tuple[AttentionSpec, ...]:
        """Geometries beside `spec` for which it calls its backend."""
        return ()

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
            latent=spec.latent,
        )

    def bytes_added(self) -> int:
        """What it will keep of weights beside the parameters of the model, in bytes; known before they are loaded."""
        return 0

    def bound_backend(self) -> AttentionBackend:
        if self.backend is None:
            raise EngineError(f"attention layer {self.layer_name!r} has no backend: the model was not finished")
        return self.backend

    def cache_of(self, kv_caches: Mapping[str, object]) -> Tensor:
        """The cache that it reads."""
        name = self.kv_sharing_target_layer_name or self.layer_name
        try:
            return cast(Tensor, kv_caches[name])
        except KeyError as error:
            raise EngineError(f"no KV cache was made for layer {name!r}", field="layer_name", value=name) from error

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor: ...


def refuse(layer: str, extra: Mapping[str, Any]) -> None:
    """Refuse keywords that ask for what a layer does not do; None and False ask for nothing."""
    asked = [name for name, value in extra.items() if value is not None and value is not False]
    if asked:
        raise ConfigError(
            f"unsupported layer: {layer} with {', '.join(asked)}",
            code="UNSUPPORTED_LAYER",
            field=asked[0],
            value=extra[asked[0]],
        )


def cache_config_or_scopes(given: Any) -> Any:
    """The `cache_config` that a layer was given, or the build scope's; None outside one."""
    scope = get_current_vllm_config_or_none()
    return given if given is not None or scope is None else scope.cache_config


def cache_dtype_of(cache_config: Any) -> torch.dtype:
    """ "auto" is the model's dtype, which is the default one inside a build scope."""
    name = "auto" if cache_config is None else cache_config.cache_dtype
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
