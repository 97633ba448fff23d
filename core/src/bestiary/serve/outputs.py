"""From sequence updates to outputs: text, stop strings, the `n` answers of one request put together; or a vector."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bestiary.api.lora import LoRARequest
from bestiary.api.outputs import CompletionOutput, PoolingRequestOutput, RequestMetrics, RequestOutput, TokenLogprobs
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.engine.sequence import SequenceUpdate

from .pooled import end_pooled, new_pooled
from .text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer


AnyOutput: TypeAlias = RequestOutput | PoolingRequestOutput[Any]


@dataclass(slots=True)
class _Answer:
    """One growing answer and what makes its text."""

    request: RequestOutput
    output: CompletionOutput
    detokenizer: Detokenizer | None
    shows_stop: bool


class Requests(Protocol):
    """What takes requests: an engine, or the way to one in another process."""

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> list[str]:
        """The ids of its answers. Raises `RequestError`."""
        ...

    def finish(self, request_id: str, stop: str) -> SequenceUpdate | None:
        """End an answer whose text holds `stop`; its last update, None where that comes later or has come."""
        ...

    def abort(self, request_id: str) -> SequenceUpdate | None:
        """Forget an answer; the same."""
        ...


@dataclass(slots=True)
class OutputProcessor:
    """Keeps the outputs of every live request; owned by whoever drives the engine.

    `engine` is told of stop strings; `tokenizer` may be None where requests do not detokenize.
    """

    engine: Requests
    tokenizer: Tokenizer | None
    _answers: dict[str, _Answer] = field(default_factory=dict)
    _pooled: dict[str, PoolingRequestOutput[Any]] = field(default_factory=dict)

    def add(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> RequestOutput:
        """Admit a request to the engine; its output object is returned now and filled in place by `process`."""
        detokenizers = [self._detokenizer(prompt_token_ids, sampling) for _ in range(sampling.n)]
        children = self.engine.add_request(
            request_id,
            prompt_token_ids,
            sampling,
            priority=priority,
            cache_salt=cache_salt,
            lora_request=lora_request,
        )
        outputs = [
            CompletionOutput(index, logprobs=None if sampling.logprobs is None else []) for index in range(sampling.n)
        ]
        request = RequestOutput(
            request_id,
            prompt,
            list(prompt_token_ids),
            outputs,
            metrics=RequestMetrics(arrival=time.monotonic()),
            lora_name=None if lora_request is None else lora_request.lora_name,
        )
        for child, output, detokenizer in zip(children, outputs, detokenizers, strict=True):
            self._answers[child] = _Answer(request, output, detokenizer, sampling.include_stop_str_in_output)
        return request

    def add_pooling(
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
        """The same for a request for a vector."""
        (name,) = self.engine.add_request(
            request_id, prompt_token_ids, params, priority=priority, cache_salt=cache_salt, lora_request=lora_request
        )
        lora_name = None if lora_request is None else lora_request.lora_name
        request = self._pooled[name] = new_pooled(request_id, prompt, prompt_token_ids, params, lora_name)
        return request

    @property
    def num_live(self) -> int:
        """Answers that have not ended."""
        return len(self._answers) + len(self._pooled)

    def live(self) -> list[str]:
        """Their ids."""
        return [*self._answers, *self._pooled]

    def process(self, updates: Iterable[SequenceUpdate]) -> list[AnyOutput]:
        """Apply updates; an answer whose text holds a stop string is ended in the engine as well."""
        changed: dict[str, AnyOutput] = {}
        for update in updates:
            answer = self._answers.get(update.request_id)
            if answer is not None:
                self._apply(answer, update)
                changed[answer.request.request_id] = answer.request
            elif update.request_id in self._pooled:
                changed[update.request_id] = end_pooled(self._pooled.pop(update.request_id), update)
        return list(changed.values())

    def abort(self, request: AnyOutput) -> None:
        """End what is left of a request."""
        names = [name for name, answer in self._answers.items() if answer.request is request]
        for child in names or [name for name, pooled in self._pooled.items() if pooled is request]:
            update = self.engine.abort(child)
            if update is not None:
                self.process([update])

    def _detokenizer(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Detokenizer | None:
        if self.tokenizer is None or not sampling.detokenize:
            return None
        return Detokenizer(
            self.tokenizer,
            prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            shown_token_ids=sampling.shown_token_ids,
            stop=sampling.stop_strings,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            min_tokens=sampling.min_tokens,
        )

    def _apply(self, answer: _Answer, update: SequenceUpdate) -> None:
        output, metrics = answer.output, answer.request.metrics
        if update.prompt_logprobs is not None and answer.request.prompt_logprobs is None:
            answer.request.prompt_logprobs = [
                None if entry is None else self._with_text(entry) for entry in update.prompt_logprobs
            ]
        if update.token_id is not None:
            if metrics.first_token is None:
                metrics.first_token = time.monotonic()
            self._append(answer, update.token_id, update)
        if update.finish_reason is not None and output.finish_reason is None:
            self._end(answer, update)

    def _append(self, answer: _Answer, token_id: int, update: SequenceUpdate) -> None:
        output = answer.output
        output.token_ids.append(token_id)
        if output.logprobs is not None and update.logprobs is not None:
            output.logprobs.append(self._with_text(update.logprobs))
        if answer.detokenizer is None:
            return
        if update.finish_reason == "stop" and not answer.shows_stop:
            return  # the id that ended the answer is in `token_ids` and not in the text
        delta = answer.detokenizer.push([token_id])
        output.text += delta.text
        if delta.stop is not None:
            ended = self.engine.finish(update.request_id, delta.stop)
            reason = update if ended is None else ended
            self._end(answer, reason._replace(finish_reason="stop", stop_reason=delta.stop))

    def _end(self, answer: _Answer, update: SequenceUpdate) -> None:
        output, request = answer.output, answer.request
        if answer.detokenizer is not None and not isinstance(update.stop_reason, str):
            output.text += answer.detokenizer.finish()
        output.finish_reason, output.stop_reason = update.finish_reason, update.error or update.stop_reason
        request.metrics.cached_tokens += update.cached_tokens
        request.metrics.preemptions += update.preemptions
        del self._answers[update.request_id]
        request.finished = all(each.finished for each in request.outputs)
        if request.finished:
            request.metrics.finished = time.monotonic()

    def _with_text(self, logprobs: TokenLogprobs) -> TokenLogprobs:
        if self.tokenizer is None:
            return logprobs
        return {
            token: replace(value, decoded_token=self.tokenizer.token_text(token)) for token, value in logprobs.items()
        }
