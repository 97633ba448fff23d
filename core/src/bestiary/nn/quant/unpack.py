"""Taking apart int32 words that hold several codes each, the first in the lowest bits."""

from __future__ import annotations

import torch

from bestiary.nn.ops.quant import unpacked


def codes_in_bytes(words: torch.Tensor) -> torch.Tensor:
    """int32 ``[rows, words]`` → uint8 ``[rows, 4 * words]``: the same bits, which are codes of 8, or two of 4 each."""
    return words.contiguous().view(torch.uint8)


def codes_in_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 ``[rows, words]`` of codes of 4 or 8 bits → uint8 ``[rows, codes]``."""
    held = codes_in_bytes(words)
    return held if bits == 8 else unpacked(held, 2 * held.shape[1])
