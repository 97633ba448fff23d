"""Attention with the arguments of vLLM's `forward` that say what its output looks like."""

from __future__ import annotations

from typing import Any

import torch

import bestiary.nn as core

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
    pass


class EncoderOnlyAttention(_AsVllmCallsIt, core.EncoderOnlyAttention):
    pass


class ChunkedLocalAttention(_AsVllmCallsIt, core.ChunkedLocalAttention):
    pass


class PrefillPrefixLMAttention(_AsVllmCallsIt, core.PrefillPrefixLMAttention):
    pass


class StaticSinkAttention(_AsVllmCallsIt, core.StaticSinkAttention):
    pass
