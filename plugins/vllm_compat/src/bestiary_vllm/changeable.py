"""Configuration that a model file may change while it builds a model, with the fields that only vLLM has.

Core's own objects are frozen and stay as they are. Of one of them there is one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from bestiary.api.config import ModelConfig

from .hf_config import as_read_by_files

T = TypeVar("T")

_COPY = "_changeable_copy"


@dataclass
class CompilationConfig:
    """Where layers that model files write themselves enter their names: prefix → layer. Nothing is compiled."""

    static_forward_context: dict[str, Any] = field(default_factory=dict)
    splitting_ops: list[str] | None = None
    max_cudagraph_capture_size: int = 0


_MORE: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "VllmConfig": {
        "compilation_config": lambda _: CompilationConfig(),
        "num_speculative_tokens": lambda _: 0,
        "kv_transfer_config": lambda _: None,
        "attention_config": lambda _: SimpleNamespace(backend=None),
        "kernel_config": lambda _: SimpleNamespace(moe_backend="auto"),
        "mamba_config": lambda _: SimpleNamespace(backend="auto"),
        "additional_config": lambda _: {},
        "use_v2_model_runner": lambda _: False,
    },
    "ModelConfig": {
        "multimodal_config": lambda _: None,
        "override_generation_config": lambda _: {},
        "try_get_generation_config": lambda _: dict,
        "head_dtype": lambda config: config.dtype,
        "get_sliding_window": lambda config: lambda: getattr(config.hf_text_config, "sliding_window", None),
        "enforce_eager": lambda _: True,
        "is_deepseek_mla": lambda config: config.use_mla,
    },
    "CacheConfig": {
        "kv_sharing_fast_prefill": lambda _: False,
        "mamba_block_size": lambda _: None,
        "mamba_cache_mode": lambda _: "none",
        "use_replayssm": lambda _: False,
        "replayssm_buffer_len": lambda _: 0,
    },
    "ParallelConfig": {
        "decode_context_parallel_size": lambda _: 1,
        "prefill_context_parallel_size": lambda _: 1,
        "dcp_q_replicate": lambda _: False,
        "use_ubatching": lambda _: False,
        "enable_dbo": lambda _: False,
        "data_parallel_index": lambda config: config.data_parallel_rank,
        "expert_placement_strategy": lambda _: "linear",
    },
}
"""Fields that only vLLM has: core's class → field → what it is for a copy, made when it is first asked for."""


class _Changeable:
    """Marks copies, lets their fields be set, and has vLLM's beside core's."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def __getattr__(self, name: str) -> Any:
        more = _MORE.get(type(self).__name__, {})
        if name not in more:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        made = more[name](self)
        object.__setattr__(self, name, made)
        return made


def changeable(config: T) -> T:
    """A copy of a frozen dataclass, and of those among its fields, that can be changed; one that can is itself."""
    if isinstance(config, _Changeable):
        return config
    if _COPY not in vars(config):
        copy: Any = object.__new__(_class_of(cast(Hashable, type(config))))
        for each in fields(config):  # type: ignore[arg-type]
            value = getattr(config, each.name)
            copy.__dict__[each.name] = changeable(value) if _is_frozen(value) else value
        if isinstance(config, ModelConfig):
            copy.hf_config, copy.hf_text_config = as_read_by_files(config.hf_config, config.hf_text_config)
        vars(config)[_COPY] = copy
    made: T = vars(config)[_COPY]
    return made


def _is_frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None) if is_dataclass(value) else None
    return parameters is not None and bool(parameters.frozen) and hasattr(value, "__dict__")


@cache
def _class_of(frozen: Hashable) -> Any:
    base: Any = frozen
    return type(base.__name__, (_Changeable, base), {"__module__": base.__module__})
