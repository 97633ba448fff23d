"""From sequence updates to `PoolingRequestOutput`s, of an engine that makes vectors."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bestiary.api.lora import LoRARequest
from bestiary.api.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestMetrics,
)
from bestiary.api.pooling import PoolingParams, PoolingTask
from bestiary.engine.sequence import SequenceUpdate

from .outputs import Requests

_OUTPUTS: dict[PoolingTask | None, type[PoolingOutput]] = {
    None: PoolingOutput, "embed": EmbeddingOutput, "classify": ClassificationOutput,
}  # fmt: skip


def new_output(
    request_id: str,
    prompt: str | None,
    prompt_token_ids: Sequence[int],
    params: PoolingParams,
    lora_name: str | None = None,
) -> PoolingRequestOutput[Any]:
    """The output of a request that was just accepted, of the kind that its task has."""
    return PoolingRequestOutput(
        request_id, prompt, list(prompt_token_ids), _OUTPUTS[params.task](),
        metrics=RequestMetrics(arrival=time.monotonic()), lora_name=lora_name,
    )  # fmt: skip


def apply(request: PoolingRequestOutput[Any], update: SequenceUpdate) -> None:
    """Enter the one update of a request that ends it."""
    output, metrics = request.outputs, request.metrics
    if update.pooled is not None:
        output.data = numbers(update.pooled)
    output.finish_reason, output.stop_reason = update.finish_reason, update.error or update.stop_reason
    metrics.cached_tokens, metrics.preemptions = update.cached_tokens, update.preemptions
    metrics.first_token = metrics.finished = time.monotonic()
    request.finished = True


def numbers(data: bytes) -> list[float]:
    """A vector as the engine sends it, as numbers."""
    return array("f", data).tolist()


@dataclass(slots=True)
class PooledOutputs:
    """Keeps the outputs of every live request of a pooling engine; owned by whoever drives the engine."""

    engine: Requests
    _live: dict[str, PoolingRequestOutput[Any]] = field(default_factory=dict)

    def add(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> PoolingRequestOutput[Any]:
        """Admit a request to the engine; its output is returned now and filled in place by `process`."""
        self.engine.add_request(
            request_id,
            prompt_token_ids,
            params,
            priority=priority,
            cache_salt=cache_salt,
            lora_request=lora_request,
        )
        name = None if lora_request is None else lora_request.lora_name
        self._live[request_id] = new_output(request_id, prompt, prompt_token_ids, params, name)
        return self._live[request_id]

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def live(self) -> list[str]:
        """Their ids."""
        return list(self._live)

    def process(self, updates: Iterable[SequenceUpdate]) -> list[PoolingRequestOutput[Any]]:
        """Apply updates; returns the requests that ended."""
        ended = []
        for update in updates:
            request = self._live.pop(update.request_id, None)
            if request is not None:
                apply(request, update)
                ended.append(request)
        return ended

    def abort(self, request: PoolingRequestOutput[Any]) -> None:
        """Forget a request."""
        update = self.engine.abort(request.request_id)
        if update is not None:
            self.process([update])
