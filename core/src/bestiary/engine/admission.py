"""What a request must satisfy before it is queued. Nothing is ever cut: it fits, or it is refused with the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams

from .sequence import Sequence, Status


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may need at most.

    Attributes:
        max_model_len: prompt and answer together, in tokens.
        cache_tokens: tokens the whole KV cache holds. The last token drawn is never computed, so needs no place.
        max_prompt: the longest prompt one step can compute; None where prompts are computed in pieces.
    """

    max_model_len: int
    cache_tokens: int
    max_prompt: int | None

    def check(self, sequence: Sequence) -> int:
        """The most tokens, prompt and answer together, that the sequence may reach; `RequestError` if it cannot run."""
        if sequence.status is not Status.NEW or sequence.sampling.n != 1:
            raise EngineError(f"{sequence.request_id}: only a new sequence with n = 1 can be queued")
        return self.most(sequence.num_prompt, sequence.pooling or sequence.sampling)

    def most(self, prompt: int, params: SamplingParams | PoolingParams) -> int:
        """The same for a prompt of so many tokens."""
        if prompt == 0:
            raise RequestError("the prompt is empty", code="EMPTY_PROMPT", field="prompt", limit="at least 1 token")
        if self.max_prompt is not None and prompt > self.max_prompt:
            raise RequestError(
                f"the prompt has {prompt} tokens, but one step computes at most {self.max_prompt}",
                code="PROMPT_EXCEEDS_STEP",
                field="prompt",
                value=prompt,
                limit=f"max_num_batched_tokens {self.max_prompt} without chunked prefill",
                fix=f"set max_num_batched_tokens to at least {prompt}, or enable_chunked_prefill",
            )
        if isinstance(params, PoolingParams):
            return self._prompt_alone(prompt)
        asked = params.max_tokens
        answer = self.max_model_len - prompt if asked is None else asked
        needed = max(answer, params.min_tokens, 1)
        if prompt + needed > self.max_model_len:
            words = "this model's maximum context length is"  # which clients look for
            raise _too_long(prompt, params, needed, self.max_model_len, "CONTEXT_LENGTH_EXCEEDED", words)
        if prompt + needed - 1 > self.cache_tokens:
            raise _too_long(prompt, params, needed, self.cache_tokens + 1, "KV_CACHE_EXCEEDED", "the KV cache can hold")
        return prompt + answer

    def _prompt_alone(self, prompt: int) -> int:
        """For a prompt after which nothing is drawn."""
        limit = min(self.max_model_len, self.cache_tokens)
        if prompt > limit:
            code = "CONTEXT_LENGTH_EXCEEDED" if prompt > self.max_model_len else "KV_CACHE_EXCEEDED"
            raise RequestError(
                f"the prompt has {prompt} tokens, more than {limit}", code=code, field="prompt", value=prompt,
                limit=f"{limit} tokens", fix=f"shorten the prompt by at least {prompt - limit} tokens",
            )  # fmt: skip
        return prompt


def _too_long(prompt: int, sampling: SamplingParams, answer: int, limit: int, code: str, bound: str) -> RequestError:
    fitting = limit - prompt
    if fitting < 1:
        fix = f"shorten the prompt by at least {1 - fitting} tokens"
    elif sampling.min_tokens > fitting:
        fix = f"set min_tokens and max_tokens to at most {fitting}, or shorten the prompt"
    else:
        fix = f"set max_tokens to at most {fitting}, or shorten the prompt"
    return RequestError(
        f"{prompt} prompt tokens and {answer} to generate are {prompt + answer}; {bound} {limit}",
        code=code,
        field="max_tokens" if fitting >= 1 else "prompt",
        value=answer if fitting >= 1 else prompt,
        limit=f"{limit} tokens, prompt and answer together",
        fix=fix,
    )
