"""What model files of vLLM before 0.12 imported for their annotations, and for sampling by themselves."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import nn


class SamplingMetadata:
    """An annotation of `compute_logits`."""


class SamplerOutput:
    """An annotation of `sample`."""


PoolerOutput = list[torch.Tensor]
"""An annotation of poolers: an answer for each prompt."""


class PoolingType(Enum):
    """Which of a prompt's hidden states is its answer."""

    LAST, ALL, CLS, STEP, MEAN = range(5)


class Sampler(nn.Module):
    """Stands where a model kept a sampler; the engine draws tokens, so nothing calls it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a model does not sample: the engine draws tokens from compute_logits")
