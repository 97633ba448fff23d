"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bestiary.serve.text.tools import DESCRIPTION_CHARS, TOOL_LIMIT

from .base import JsonObject, Reply, Strict
from .messages import Messages
from .sampling import SAMPLING_UNSUPPORTED, Count, Logprobs, SamplingFields

MAX_TOOLS = TOOL_LIMIT
Description = Annotated[str, Field(max_length=DESCRIPTION_CHARS)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    name: FunctionName
    description: Description | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: FunctionName


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchema(Strict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    type: Literal["regex"]
    regex: str


class GrammarFormat(Strict):
    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]


class ChatCompletionRequest(SamplingFields):
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"user", "metadata", "store", "service_tier", "prediction", "prompt_cache_key", "prompt_cache_retention"}
        | {"safety_identifier", "verbosity"}
    )
    UNSUPPORTED: ClassVar = SAMPLING_UNSUPPORTED | {
        "audio": None,
        "modalities": 'leave it out, or ["text"]',
        "web_search_options": None,
        "functions": "tools",
        "function_call": "tool_choice",
    }

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    reasoning_effort: Annotated[str, Field(max_length=16)] | None = None
    chat_template: str | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    verbosity: Any = None
    parallel_tool_calls: bool | None = None
    audio: None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None


class TopLogprob(Reply):
    token: str
    logprob: float | None
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Reply):
    content: list[TokenLogprob] | None
    refusal: None = None


class AnsweredFunction(Reply):
    name: str
    arguments: str


class AnsweredCall(Reply):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredCall] | None = None


class ChatChoice(Reply):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"]
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class PromptDetails(Reply):
    cached_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, JsonObject] | None] | None = None
    prompt_token_ids: list[int] | None = None
