"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with vLLM's names."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from .base import JsonObject, Reply, Request
from .chat import MAX_TOOLS, Tool
from .completions import MAX_PROMPT_IDS
from .messages import Messages
from .sampling import TokenId


class TokenizeRequest(Request):
    """A text, or a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            ]
        }
    )

    prompt: str | None = None
    messages: Messages | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: JsonObject | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("be an object with either prompt or messages")
        return self


class Tokenized(Reply):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Request):
    tokens: Annotated[list[TokenId], Field(max_length=MAX_PROMPT_IDS, fail_fast=True)]


class Detokenized(Reply):
    prompt: str


class TokenizerInfo(Reply):
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
