"""`LogitsProcessor`: hidden states to logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from bestiary.api.errors import EngineError

from .embedding import VocabParallelEmbedding
from .parallel import tensor_model_parallel_all_gather


class LocalLogits:
    """Logits of this rank's columns of a vocabulary that is divided among ranks.

    Attributes:
        made: ``[rows, columns]``, None while there are none. first: the id of the first column.
    """

    def __init__(self) -> None:
        self.made: torch.Tensor | None = None
        self.first = 0
        self._version = 0

    def set(self, made: torch.Tensor, first: int) -> None:
        self.made, self.first = made, first
        self._version = -1 if made.is_inference() else made._version

    @property
    def logits(self) -> torch.Tensor:
        if self.made is None:
            raise EngineError("no logits were made of a divided vocabulary")
        return self.made

    @property
    def changed(self) -> bool:
        """Whether somebody has changed them in place. Unknown of tensors that inference mode has made."""
        return self.logits._version != self._version


_local: ContextVar[LocalLogits | None] = ContextVar("local_logits", default=None)


@contextmanager
def local_logits() -> Iterator[LocalLogits]:
    """While it lasts, `LogitsProcessor` does not join ranks' columns: it gives this rank's, and notes them here."""
    local = LocalLogits()
    entered = _local.set(local)
    try:
        yield local
    finally:
        _local.reset(entered)


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
        """``[rows, hidden] → [rows, org_vocab_size]``, dtype of the hidden states; within `local_logits` this rank's
        columns of them."""
        logits = hidden_states if self.logits_as_input else self._project(lm_head, hidden_states, embedding_bias)
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        if self.scale != 1.0:
            logits = logits * self.scale
        local = _local.get()
        if local is not None and lm_head.tp_size > 1 and not self.logits_as_input:
            local.set(logits, lm_head.vocab_start)
        return logits

    def _project(
        self, lm_head: VocabParallelEmbedding, hidden_states: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if bias is None:
            bias = getattr(lm_head, "bias", None)
        logits = lm_head.quant_method.apply(lm_head, hidden_states, bias)
        if lm_head.tp_size > 1:
            if _local.get() is not None:
                return logits[..., : max(0, min(lm_head.vocab_end, self.org_vocab_size) - lm_head.vocab_start)]
            logits = tensor_model_parallel_all_gather(logits)
        return logits if logits.shape[-1] == self.org_vocab_size else logits[..., : self.org_vocab_size]
