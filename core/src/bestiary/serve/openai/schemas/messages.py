"""A conversation as OpenAI writes it: one model a role."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import Strict

MAX_MESSAGES = 2_048
MAX_PARTS = 1_000
MAX_CALLS = 128
MAX_ID_CHARS = 256


class TextPart(Strict):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
Name = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


class SystemMessage(Strict):
    role: Literal["system"]
    content: Content
    name: Name | None = None


class DeveloperMessage(Strict):
    role: Literal["developer"]
    content: Content
    name: Name | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Content
    name: Name | None = None


class CalledFunction(Strict):
    name: Id
    arguments: str


class ToolCall(Strict):
    id: Id
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    """An earlier answer: a content, or tool calls, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
                {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
            ]
        }
    )

    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("have a content or tool_calls")
        return self


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Id
    name: Name | None = None


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
