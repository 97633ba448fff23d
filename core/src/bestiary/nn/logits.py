"""`LogitsProcessor`: hidden states to logits."""

from __future__ import annotations

import torch
from torch import nn

from .embedding import VocabParallelEmbedding
from .parallel import tensor_model_parallel_all_gather


class LogitsProcessor(nn.Module):
    """Project, join the vocabulary shards, drop padding, then soft-cap and scale.

    Args:
        vocab_size: how many logits come out. org_vocab_size: the same, where `vocab_size` counts added rows.
        scale: multiplies the logits (Cohere, Granite). soft_cap: ``cap * tanh(logits / cap)`` (Gemma 2).
        logits_as_input: the hidden states are logits already.
    """

    def __init__(
        self,
        vocab_size: int,
        org_vocab_size: int | None = None,
        scale: float = 1.0,
        logits_as_input: bool = False,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.org_vocab_size = org_vocab_size or vocab_size
        self.scale = scale
        self.logits_as_input = logits_as_input
        self.soft_cap = soft_cap

    def forward(
        self, lm_head: VocabParallelEmbedding, hidden_states: torch.Tensor, embedding_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[rows, hidden] → [rows, org_vocab_size]``, dtype of the hidden states."""
        logits = hidden_states if self.logits_as_input else self._project(lm_head, hidden_states, embedding_bias)
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits if self.scale == 1.0 else logits * self.scale

    def _project(
        self, lm_head: VocabParallelEmbedding, hidden_states: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if bias is None:
            bias = getattr(lm_head, "bias", None)
        logits = lm_head.quant_method.apply(lm_head, hidden_states, bias)
        if lm_head.tp_size > 1:
            logits = tensor_model_parallel_all_gather(logits)
        return logits if logits.shape[-1] == self.org_vocab_size else logits[..., : self.org_vocab_size]
