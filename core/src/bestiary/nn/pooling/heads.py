"""What becomes of a pooled hidden state: an embedding, or classes.

Each vector is computed by itself, so that it does not depend on how many others are made in the same step; only a layer
of the model sees them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bestiary.api.pooling import PoolingParams

Layer = Callable[[torch.Tensor], Any]


class EmbeddingHead(nn.Module):
    """`projector`: a layer of the model after pooling, or None. Then the cut, then the length, in float32."""

    def __init__(self, projector: Layer | None = None) -> None:
        super().__init__()
        self.projector = projector
        self.dtype = torch.get_default_dtype()
        size = getattr(projector, "output_size", None) or getattr(projector, "out_features", None)
        self.embedding_size: int | None = size if isinstance(size, int) else None

    def forward(self, pooled: list[torch.Tensor], params: list[PoolingParams]) -> list[torch.Tensor]:
        vectors = pooled if self.projector is None else list(_through(self.projector, pooled, self.dtype))
        return [_embedding(vector, each) for vector, each in zip(vectors, params, strict=True)]


class ClassifierHead(nn.Module):
    """`classifier`: the layer that scores, or None where that is done. Then probabilities, in float32."""

    def __init__(self, classifier: Layer | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.dtype = torch.get_default_dtype()

    def forward(self, pooled: list[torch.Tensor], params: list[PoolingParams]) -> list[torch.Tensor]:
        scores = pooled if self.classifier is None else list(_through(self.classifier, pooled, self.dtype))
        return [_probabilities(each) if wanted.normalize else each for each, wanted in zip(scores, params, strict=True)]


def _through(layer: Layer, pooled: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """``[prompts, out]`` in float32; a layer of ours may give its bias beside what it made."""
    out = layer(torch.stack(pooled).to(dtype))
    made: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return made.float()


def _embedding(vector: torch.Tensor, params: PoolingParams) -> torch.Tensor:
    vector = vector[: params.dimensions]
    return torch.nn.functional.normalize(vector, dim=-1) if params.normalize else vector


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(scores) if len(scores) == 1 else torch.softmax(scores, dim=-1)
