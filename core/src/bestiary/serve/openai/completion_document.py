"""A completion's parameters, and its answers as a document. Knows neither HTTP nor who computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestiary.api.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from bestiary.api.sampling import SamplingParams

from .documents import usage
from .logprobs import LegacyLogprobs, Spelling, prompt_logprobs
from .schemas.completions import CompletionRequest
from .structured import Form

_DEFAULT_MAX_TOKENS = 16


def parameters(request: CompletionRequest, form: Form | None, defaults: Mapping[str, Any]) -> SamplingParams:
    """How the tokens of every answer are chosen. An echo with log-probabilities needs those of the prompt."""
    echoed = request.logprobs if request.echo else None
    return request.sampling(
        defaults,
        max_tokens=_DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs if echoed is None else max(echoed, request.prompt_logprobs or 0),
        structured_outputs=None if form is None else form.params,
    )


@dataclass(frozen=True, slots=True)
class CompletionWriter:
    """Writes the answers to `request`.

    Attributes:
        spelling: how tokens are written; asked for where that is needed.
    """

    request: CompletionRequest
    spelling: Callable[[], Spelling]

    def document(self, fields: Mapping[str, Any], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """All of it, beginning with `fields`."""
        each = self.request.n or 1
        choices = [
            self._choice(index * each + answer.index, output, answer)
            for index, output in enumerate(outputs)
            for answer in output.outputs
        ]
        return {**fields, "choices": choices, "usage": usage(outputs)}

    def prompt_text(self, output: RequestOutput) -> str:
        """What an echo repeats."""
        return output.prompt if output.prompt is not None else self.spelling().text(output.prompt_token_ids)

    def legacy(self) -> LegacyLogprobs | None:
        """What writes one answer's log-probabilities, where they were asked for."""
        wanted = self.request.logprobs
        return None if wanted is None else LegacyLogprobs(self.spelling(), wanted)

    def _choice(self, index: int, request: RequestOutput, output: CompletionOutput) -> dict[str, Any]:
        wanted = self.request
        choice = {
            "index": index,
            "text": (self.prompt_text(request) if wanted.echo else "") + output.text,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        legacy = self.legacy()
        if legacy is not None and output.logprobs is not None:
            ids, entries = list(output.token_ids), list[TokenLogprobs | None](output.logprobs)
            if wanted.echo and request.prompt_logprobs is not None:
                ids, entries = request.prompt_token_ids + ids, request.prompt_logprobs + entries
            choice["logprobs"] = legacy.piece(ids, entries)
        if wanted.return_token_ids:
            choice |= {"token_ids": output.token_ids, "prompt_token_ids": request.prompt_token_ids}
        if wanted.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(request.prompt_logprobs)
        return choice
