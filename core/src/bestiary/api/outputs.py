"""What comes back from the engine. Names follow vLLM's `RequestOutput`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log-probability (natural logarithm), its rank from 1, and its text where text is made."""

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]
"""Token id → log-probability: the token itself first, then the likeliest, best first."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `finish_reason` is None while it grows.

    `stop_reason` is the stop string or id that ended it, or what went wrong where `finish_reason` is "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum over the tokens drawn, where `logprobs` were asked for."""
        if self.logprobs is None:
            return None
        return sum(entry[token].logprob for token, entry in zip(self.token_ids, self.logprobs, strict=True))


@dataclass(slots=True)
class RequestMetrics:
    """How a request went.

    Attributes:
        arrival, first_token, finished: seconds on the monotonic clock; differences are what matter.
        cached_tokens, preemptions: prompt tokens taken from the prefix cache, and how often the request lost its
            blocks; known at its end, summed over its answers.
    """

    arrival: float = 0.0
    first_token: float | None = None
    finished: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True, eq=False)
class RequestOutput:
    """A request and all that was generated for it so far; `outputs` holds its `n` answers.

    lora_name: the adapter that answered; None for the model alone.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finished: bool = False
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    lora_name: str | None = None


@dataclass(slots=True)
class PoolingOutput:
    """What was made of one prompt: a vector. `finish_reason` is None until it is there.

    `stop_reason` says what went wrong where `finish_reason` is "error"; `data` is empty then.
    """

    data: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class EmbeddingOutput(PoolingOutput):
    """An embedding."""

    __slots__ = ()

    @property
    def embedding(self) -> list[float]:
        return self.data

    @property
    def hidden_size(self) -> int:
        """How many numbers it has."""
        return len(self.data)


class ClassificationOutput(PoolingOutput):
    """A number for each class: probabilities, unless scores were asked for."""

    __slots__ = ()

    @property
    def probs(self) -> list[float]:
        return self.data

    @property
    def num_classes(self) -> int:
        return len(self.data)


Vector = TypeVar("Vector", bound=PoolingOutput)


@dataclass(slots=True, eq=False)
class PoolingRequestOutput(Generic[Vector]):
    """A request for a vector. `lora_name`: the adapter that helped to make it; None for the model alone."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: Vector
    finished: bool = False
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    lora_name: str | None = None

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens taken from the prefix cache."""
        return self.metrics.cached_tokens


EmbeddingRequestOutput = PoolingRequestOutput[EmbeddingOutput]
ClassificationRequestOutput = PoolingRequestOutput[ClassificationOutput]
