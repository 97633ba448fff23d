"""Attention with the arguments of vLLM's `forward` that say what its output looks like."""

from __future__ import annotations

from typing import Any

import torch

import bestiary.nn as core
from bestiary_vllm.said import old_keyword

_ANY = object()


def _own_backend_only(options: dict[str, Any]) -> dict[str, Any]:
    """vLLM's backends are classes that mean nothing here: core chooses one for all layers.

    A `chunk_lookback` of -1 says that there are no chunks, and `mm_prefix_clamp_sliding_window` is about images.
    """
    nothing = {
        "attn_backend": options.get("attn_backend"),
        "chunk_lookback": -1,
        "mm_prefix_clamp_sliding_window": True,
    }
    return {name: value for name, value in options.items() if value is not None and nothing.get(name, _ANY) != value}


class _AsVllmCallsIt:
    """`forward` takes the shape of its output, which is known here, and its dtype."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_own_backend_only(options))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        output_shape: Any = None,
        output_dtype: torch.dtype | None = None,
        *,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output: torch.Tensor = super().forward(query, key, value, positions=positions)  # type: ignore[misc]
        return output if output_dtype is None else output.to(output_dtype)


class Attention(_AsVllmCallsIt, core.Attention):
    """Until 0.10 Llama 4's files ask for chunks, as long as the configuration says, by `use_irope`."""

    def __new__(cls, *arguments: Any, use_irope: bool = False, **options: Any) -> Any:
        if not use_irope or cls is not Attention:
            return super().__new__(cls)
        old_keyword("Attention", "use_irope", "ChunkedLocalAttention has chunks now")
        config = core.get_current_vllm_config().model_config.hf_config
        return ChunkedLocalAttention(*arguments[:3], config.attention_chunk_size, *arguments[3:], **options)

    def __init__(self, *arguments: Any, use_irope: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)


class EncoderOnlyAttention(_AsVllmCallsIt, core.EncoderOnlyAttention):
    pass


class ChunkedLocalAttention(_AsVllmCallsIt, core.ChunkedLocalAttention):
    pass


class PrefillPrefixLMAttention(_AsVllmCallsIt, core.PrefillPrefixLMAttention):
    pass


class StaticSinkAttention(_AsVllmCallsIt, core.StaticSinkAttention):
    pass
