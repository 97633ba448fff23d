"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, WithJsonSchema

from bestiary.api.errors import RequestError

from .base import MAX_BATCH, TOKEN_ID, JsonObject, Reply
from .chat import ResponseFormat, Usage
from .sampling import SAMPLING_UNSUPPORTED, Logprobs, SamplingFields

MAX_PROMPT_IDS = 2**20
_ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, TOKEN_ID: True}
_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": _ID, "minItems": 1, "maxItems": MAX_PROMPT_IDS}
_RULE = f"a text, a list of token ids, or a list of at most {MAX_BATCH} of either"


def as_prompts(given: object, field: str = "prompt") -> list[str | list[int]]:
    """One prompt or several, as a list. Raises `RequestError` that names the place."""
    if isinstance(given, str) or _are_integers(given):
        return [_prompt(given, field)]
    if not isinstance(given, list):
        raise RequestError("the prompt has no usable form", field=field, value=given, limit=_RULE)
    if not given:
        raise _empty(field)
    if len(given) > MAX_BATCH:
        raise RequestError("too many prompts", field=field, value=len(given), limit=f"at most {MAX_BATCH}")
    if any(isinstance(each, str) for each in given) and not all(isinstance(each, str) for each in given):
        raise RequestError("texts and token ids are mixed", field=field, limit=_RULE)
    return [_prompt(each, f"{field}[{index}]") for index, each in enumerate(given)]


def _prompt(given: object, field: str) -> str | list[int]:
    if given in ("", []):
        raise _empty(field)
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise RequestError("the prompt has no usable form", field=field, value=given, limit=_RULE)
    for index, token in enumerate(given):
        if isinstance(token, float) and token.is_integer():
            token = given[index] = int(token)
        if not isinstance(token, int) or isinstance(token, bool):
            raise RequestError("no token id", field=f"{field}[{index}]", value=token, limit="a whole number from 0")
        if not 0 <= token < 2**31:
            raise RequestError(
                "no token id", code="TOKEN_OUT_OF_RANGE", field=f"{field}[{index}]", value=token,
                limit="an id of the model's vocabulary",
            )  # fmt: skip
    if len(given) > MAX_PROMPT_IDS:
        raise RequestError("too many token ids", field=field, value=len(given), limit=f"at most {MAX_PROMPT_IDS}")
    return given


def _are_integers(given: object) -> bool:
    """Whether this is a list that starts with a number: one prompt, if a good one."""
    return isinstance(given, list) and bool(given) and isinstance(given[0], int | float)


def _empty(field: str) -> RequestError:
    return RequestError("the prompt is empty", code="EMPTY_PROMPT", field=field, limit="at least 1 token")


PROMPTS_SCHEMA = {
    "anyOf": [
        _TEXT,
        _IDS,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_BATCH},
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_BATCH},
    ]
}
Prompts = Annotated[list[Any], BeforeValidator(as_prompts), WithJsonSchema(PROMPTS_SCHEMA)]


class CompletionRequest(SamplingFields):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"user"})
    UNSUPPORTED: ClassVar = SAMPLING_UNSUPPORTED | {"suffix": "put what follows into the prompt"}

    prompt: Prompts
    echo: bool | None = None
    logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    add_special_tokens: bool | None = None
    suffix: None = None
    user: Any = None


class LegacyLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length", "abort"]
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, JsonObject] | None] | None = None


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None = None
