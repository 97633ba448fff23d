"""Bestiary: a model zoo for LLM inference in which every architecture is a pip package.

    from bestiary import LLM, SamplingParams

Names are imported when first used, so that `import bestiary` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bestiary.api.lazy import lazy_names

if TYPE_CHECKING:
    from bestiary.api.lora import LoRARequest
    from bestiary.api.outputs import CompletionOutput, PoolingRequestOutput, RequestOutput
    from bestiary.api.pooling import PoolingParams
    from bestiary.api.registry import ModelRegistry
    from bestiary.api.sampling import SamplingParams
    from bestiary.api.structured import StructuredOutputsParams
    from bestiary.serve.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "LoRARequest",
    "ModelRegistry",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LLM": "bestiary.serve.llm",
        "LoRARequest": "bestiary.api.lora",
        "CompletionOutput": "bestiary.api.outputs",
        "RequestOutput": "bestiary.api.outputs",
        "ModelRegistry": "bestiary.api.registry",
        "PoolingParams": "bestiary.api.pooling",
        "PoolingRequestOutput": "bestiary.api.outputs",
        "SamplingParams": "bestiary.api.sampling",
        "StructuredOutputsParams": "bestiary.api.structured",
    },
)
