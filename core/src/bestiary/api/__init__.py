"""Ring 0: the contracts. Imports neither torch nor any plugin; names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .alias import Alias
    from .config import (
        CacheConfig,
        LoRAConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from .gguf import GgufArchitecture
    from .intermediate import IntermediateTensors
    from .lora import LoRARequest
    from .pooling import PoolerConfig, PoolingParams
    from .protocols import (
        EagleModelMixin,
        HasInnerState,
        IsAttentionFree,
        IsHybrid,
        MixtureOfExperts,
        SupportsCrossEncoding,
        SupportsEagle,
        SupportsEagle3,
        SupportsLoRA,
        SupportsMultiModal,
        SupportsPP,
        SupportsQuant,
        VllmModel,
        VllmModelForPooling,
        VllmModelForTextGeneration,
    )
    from .registry import ModelRegistry
    from .sampling import SamplingParams
    from .structured import StructuredOutputsParams

_OWNERS = {
    "alias": ("Alias",),
    "config": ("CacheConfig", "LoRAConfig", "ModelConfig", "ParallelConfig", "SchedulerConfig", "VllmConfig"),
    "gguf": ("GgufArchitecture",),
    "intermediate": ("IntermediateTensors",),
    "lora": ("LoRARequest",),
    "pooling": ("PoolerConfig", "PoolingParams"),
    "protocols": (
        "EagleModelMixin",
        "HasInnerState",
        "IsAttentionFree",
        "IsHybrid",
        "MixtureOfExperts",
        "SupportsCrossEncoding",
        "SupportsEagle",
        "SupportsEagle3",
        "SupportsLoRA",
        "SupportsMultiModal",
        "SupportsPP",
        "SupportsQuant",
        "VllmModel",
        "VllmModelForPooling",
        "VllmModelForTextGeneration",
    ),
    "registry": ("ModelRegistry",),
    "sampling": ("SamplingParams",),
    "structured": ("StructuredOutputsParams",),
}

__all__ = [
    "Alias",
    "CacheConfig",
    "EagleModelMixin",
    "GgufArchitecture",
    "HasInnerState",
    "IntermediateTensors",
    "IsAttentionFree",
    "IsHybrid",
    "LoRAConfig",
    "LoRARequest",
    "MixtureOfExperts",
    "ModelConfig",
    "ModelRegistry",
    "ParallelConfig",
    "PoolerConfig",
    "PoolingParams",
    "SamplingParams",
    "SchedulerConfig",
    "StructuredOutputsParams",
    "SupportsCrossEncoding",
    "SupportsEagle",
    "SupportsEagle3",
    "SupportsLoRA",
    "SupportsMultiModal",
    "SupportsPP",
    "SupportsQuant",
    "VllmConfig",
    "VllmModel",
    "VllmModelForPooling",
    "VllmModelForTextGeneration",
]

__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _OWNERS.items() for name in names}
)
