"""`POST /v1/responses`, the part of it that keeps nothing between requests."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from .base import WHOLE, JsonObject, Reply, Request, Strict
from .chat import MAX_TOOLS, Description, FunctionName
from .messages import MAX_MESSAGES, MAX_PARTS, Id
from .sampling import MAX_SALT_CHARS, Count, Logprobs, Temperature


class InputText(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Strict):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputText], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class FunctionCallItem(Strict):
    type: Literal["function_call"]
    call_id: Id
    name: Id
    arguments: str


class FunctionOutputItem(Strict):
    type: Literal["function_call_output"]
    call_id: Id
    output: str


class ReasoningItem(Strict):
    """Earlier reasoning; templates leave it out, and so it is."""

    type: Literal["reasoning"]


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class ResponseTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: Description | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ChosenTool(Strict):
    type: Literal["function"]
    name: FunctionName


class PlainFormat(Strict):
    type: Literal["text"]


class AnyJsonFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    format: Annotated[PlainFormat | AnyJsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: str | None = None


class ReasoningOptions(Strict):
    effort: Annotated[str, Field(max_length=16)] | None = None
    summary: str | None = None


class ResponsesRequest(Request):
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"user", "metadata", "service_tier", "include", "prompt_cache_key", "safety_identifier"}
        | {"prompt_cache_retention", "stream_options", "max_tool_calls"}
    )
    UNSUPPORTED: ClassVar = {
        "store": "nothing is kept: leave it out, or false",
        "previous_response_id": "nothing is kept: send the whole conversation as input",
        "conversation": "nothing is kept: send the whole conversation as input",
        "background": "stream",
        "truncation": '"disabled": nothing is ever cut',
        "prompt": "input and instructions",
    }

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    )
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1), WHOLE] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
    chat_template_kwargs: JsonObject | None = None
    store: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    prompt: None = None
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    include: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    stream_options: Any = None
    max_tool_calls: Any = None


class OutputTopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class OutputLogprob(OutputTopLogprob):
    top_logprobs: list[OutputTopLogprob]


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[OutputLogprob]


class OutputMessage(Reply):
    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete", "in_progress"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Reply):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete", "in_progress"]


class ReasoningText(Reply):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Reply):
    type: Literal["reasoning"]
    id: str
    status: Literal["completed", "incomplete", "in_progress"]
    summary: list[Any]
    content: list[ReasoningText]


OutputItem = Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]


class CachedTokens(Reply):
    cached_tokens: int


class ReasoningTokens(Reply):
    reasoning_tokens: int


class ResponseUsage(Reply):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(Reply):
    code: str
    message: str


class Incomplete(Reply):
    reason: Literal["max_output_tokens"]


class ResponseDocument(Reply):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: JsonObject
    store: Literal[False]
    temperature: float
    text: JsonObject
    tool_choice: Any
    tools: list[JsonObject]
    top_p: float
    top_logprobs: int
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    metadata: JsonObject
