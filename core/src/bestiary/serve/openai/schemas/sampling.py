"""`SamplingParams` as JSON: OpenAI's names, and vLLM's beside them. The limits are those of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from bestiary.api.sampling import (
    MAX_IDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP,
    MAX_STOP_CHARS,
    MAX_TOKENS,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)
from bestiary.api.structured import MAX_CHOICES

from .base import TOKEN_ID, WHOLE, JsonObject, Request, Strict

MAX_SALT_CHARS = 128
_LOWEST_TEMPERATURE = 1e-3
_TOKEN = r"^[0-9]{1,9}$"
_MAX_PRIORITY = 2**31 - 1

Count = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra={TOKEN_ID: True}), WHOLE]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def _temperature(value: float) -> float:
    if 0 < value < _LOWEST_TEMPERATURE:
        raise ValueError(f"be 0 (greedy) or at least {_LOWEST_TEMPERATURE}")
    return value


Temperature = Annotated[
    float,
    Field(ge=0, le=100),
    AfterValidator(_temperature),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "number", "minimum": _LOWEST_TEMPERATURE, "maximum": 100}]}),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=_TOKEN)], Bias],
    Field(max_length=MAX_LOGIT_BIAS),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_TOKEN: {"type": "number", "minimum": -100, "maximum": 100}},
            "additionalProperties": False,
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: exactly one of these."""

    json_: JsonObject | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Choices | None = None
    disable_any_whitespace: bool | None = None


class SamplingFields(Request):
    """What `/v1/chat/completions` and `/v1/completions` have in common."""

    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1), WHOLE] | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP)] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)] | None = None
    bad_token_ids: TokenIds | None = None
    prompt_logprobs: Logprobs | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-_MAX_PRIORITY, le=_MAX_PRIORITY), WHOLE] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonObject | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    best_of: Literal[1] | None = None
    use_beam_search: Literal[False] | None = None
    length_penalty: Literal[1] | None = None
    prompt_embeds: None = None
    bad_words: Annotated[list[Any], Field(max_length=0)] | None = None

    def sampling(self, defaults: Mapping[str, Any], **others: Any) -> SamplingParams:
        """The parameters this request states, beside `defaults`, and `others`. Raises `RequestError` for what does not
        go together."""
        given = {name: getattr(self, name) for name in _PLAIN if getattr(self, name) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        return SamplingParams(**{**defaults, **given, **others})


SAMPLING_UNSUPPORTED: dict[str, str | None] = {
    "best_of": "n answers are drawn and all are returned",
    "use_beam_search": "sampling: temperature, top_p, top_k",
    "length_penalty": "it is for beam search",
    "prompt_embeds": "text or token ids",
    "bad_words": "bad_token_ids",
}

_PLAIN = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "allowed_token_ids", "bad_token_ids", "prompt_logprobs", "skip_special_tokens",
)  # fmt: skip
"""Fields with the name and meaning that `SamplingParams` gives them."""
