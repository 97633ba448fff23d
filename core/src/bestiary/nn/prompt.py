"""Layers for which a token's keys or values depend on how long its sequence's prompt is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class PromptDependent(Protocol):
    """The engine asks every such layer of a model, and shares cached keys and values only where all answers agree.

    In a forward pass the lengths are the `prompt_lens` of the forward context's attention metadata.
    """

    def cache_salt(self, prompt_len: int) -> int | str:
        """Equal for two lengths of prompts exactly if equal beginnings of them have equal keys and values."""
        ...
