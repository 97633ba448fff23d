"""The output of a request for a vector: made, and ended."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from typing import Any

from bestiary.api.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestMetrics,
)
from bestiary.api.pooling import PoolingParams, PoolingTask
from bestiary.engine.sequence import SequenceUpdate

_OUTPUTS: dict[PoolingTask | None, type[PoolingOutput]] = {
    None: PoolingOutput, "embed": EmbeddingOutput, "classify": ClassificationOutput,
}  # fmt: skip


def new_pooled(
    request_id: str, prompt: str | None, prompt_token_ids: Sequence[int], params: PoolingParams, lora_name: str | None
) -> PoolingRequestOutput[Any]:
    """That of a request which was just accepted, of the kind that its task has."""
    metrics = RequestMetrics(arrival=time.monotonic())
    output = _OUTPUTS[params.task]()
    return PoolingRequestOutput(
        request_id, prompt, list(prompt_token_ids), output, metrics=metrics, lora_name=lora_name
    )


def end_pooled(request: PoolingRequestOutput[Any], update: SequenceUpdate) -> PoolingRequestOutput[Any]:
    """Enter the one update that a request for a vector gets, its last."""
    output, metrics = request.outputs, request.metrics
    if update.pooled is not None:
        output.data = array("f", update.pooled).tolist()
    output.finish_reason, output.stop_reason = update.finish_reason, update.error or update.stop_reason
    metrics.cached_tokens, metrics.preemptions = update.cached_tokens, update.preemptions
    metrics.first_token = metrics.finished = time.monotonic()
    request.finished = True
    return request
