"""`PoolingParams`: what vector is made of one prompt. `PoolerConfig`: how a model makes vectors of hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import RequestError, UsageError
from .protocols import PoolingTypeStr

PoolingTask = Literal["embed", "classify"]
"""A vector that stands for a text, or a number for each class that it may belong to."""
POOLING_TYPES: tuple[PoolingTypeStr, ...] = ("LAST", "CLS", "MEAN")
"""Of those that vLLM names: the last token's hidden state, the first one's, the mean of all."""
MAX_DIMENSIONS = 2**20


@dataclass(frozen=True, kw_only=True)
class PoolingParams:
    """What a prompt is turned into; checked when made, never changed after.

    Attributes:
        task: "embed" or "classify"; None: the first of these that the model can do.
        normalize: embeddings have length 1 (L2), and classes probabilities instead of scores (softmax; sigmoid where
            there is one class).
        dimensions: keep only the first so many numbers of an embedding, before it is normalized (Matryoshka
            representations, arXiv 2205.13147). None: all.
    """

    task: PoolingTask | None = None
    normalize: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.task not in (None, *get_args(PoolingTask)):
            raise _refuse("task", self.task, " or ".join(get_args(PoolingTask)))
        if not isinstance(self.normalize, bool):
            raise _refuse("normalize", self.normalize, "true or false")
        wanted = self.dimensions
        if wanted is None:
            return
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= MAX_DIMENSIONS:
            raise _refuse("dimensions", wanted, f"an integer from 1 to {MAX_DIMENSIONS}")
        if self.task == "classify":
            raise _refuse("dimensions", wanted, "left out where classes are wanted: all of them are given")


def _refuse(name: str, value: object, rule: str) -> RequestError:
    return RequestError(f"{name} must be {rule}", field=name, limit=rule, value=value)


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """How a sequence's hidden states become one.

    Attributes:
        pooling_type: "LAST", "CLS" or "MEAN".
    """

    pooling_type: PoolingTypeStr = "LAST"

    def __post_init__(self) -> None:
        if self.pooling_type not in POOLING_TYPES:
            raise UsageError(
                "there is no such pooling", field="pooling_type", value=self.pooling_type,
                limit=" or ".join(POOLING_TYPES),
            )  # fmt: skip
