"""`LogitsProcessor` as it is called now, and as it was with sampling metadata between its arguments."""

from __future__ import annotations

from typing import Any

import torch

import bestiary.nn as core


class LogitsProcessor(core.LogitsProcessor):
    def forward(self, lm_head: Any, hidden_states: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """rest: `embedding_bias`; until 0.10, sampling metadata before it."""
        bias: torch.Tensor | None = options.get("embedding_bias", rest[-1] if rest else None)
        return super().forward(lm_head, hidden_states, bias if isinstance(bias, torch.Tensor) else None)
