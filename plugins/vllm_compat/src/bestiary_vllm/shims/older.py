"""What model files of vLLM before 0.12 imported for their annotations, and for sampling by themselves."""

from __future__ import annotations

from typing import Any

from torch import nn


class SamplingMetadata:
    """An annotation of `compute_logits`."""


class SamplerOutput:
    """An annotation of `sample`."""


class Sampler(nn.Module):
    """Stands where a model kept a sampler; the engine draws tokens, so nothing calls it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a model does not sample: the engine draws tokens from compute_logits")
