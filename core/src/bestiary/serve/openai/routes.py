"""The table of endpoints: the router and `/openapi.json` are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from . import chat, completions, embeddings, health, lora, metrics, models, responses, server, tokenize
from .schemas.chat import ChatCompletion, ChatCompletionRequest
from .schemas.completions import Completion, CompletionRequest
from .schemas.embeddings import Embeddings, EmbeddingsRequest
from .schemas.lora import LoadAdapterRequest, UnloadAdapterRequest
from .schemas.responses import ResponseDocument, ResponsesRequest
from .schemas.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

if TYPE_CHECKING:
    from .service import Call


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    Attributes:
        takes: the model of its body, if it has one. gives: the model of a good answer.
        open: no key is asked for. streams: it may answer with events.
        loads: it needs the engine, so that it may be refused with 503.
    """

    method: Literal["GET", "POST"]
    path: str
    run: Callable[[Call], Awaitable[Any]]
    summary: str
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    open: bool = False
    streams: bool = False
    loads: bool = False


ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat.chat_completions, "Answer a conversation.",
             takes=ChatCompletionRequest, gives=ChatCompletion, streams=True, loads=True),
    Endpoint("POST", "/v1/completions", completions.completions, "Continue prompts.",
             takes=CompletionRequest, gives=Completion, streams=True, loads=True),
    Endpoint("POST", "/v1/responses", responses.responses, "Answer an input.",
             takes=ResponsesRequest, gives=ResponseDocument, streams=True, loads=True),
    Endpoint("POST", "/v1/embeddings", embeddings.embeddings, "A vector for each text.",
             takes=EmbeddingsRequest, gives=Embeddings, loads=True),
    Endpoint("POST", "/tokenize", tokenize.tokenize, "The token ids of a text or conversation.",
             takes=TokenizeRequest, gives=Tokenized),
    Endpoint("POST", "/detokenize", tokenize.detokenize, "The text of token ids.",
             takes=DetokenizeRequest, gives=Detokenized),
    Endpoint("POST", "/v1/load_lora_adapter", lora.load_adapter, "Load an adapter.",
             takes=LoadAdapterRequest, loads=True),
    Endpoint("POST", "/v1/unload_lora_adapter", lora.unload_adapter, "Forget an adapter.",
             takes=UnloadAdapterRequest, loads=True),
    Endpoint("GET", "/server/info", server.info, "The model, the defaults and the limits."),
    Endpoint("GET", "/server/stats", server.stats, "Where things stand."),
    Endpoint("GET", "/v1/models", models.list_models, "The models that can be named."),
    Endpoint("GET", "/v1/models/{model:path}", models.retrieve_model, "One of them."),
    Endpoint("GET", "/health", health.ready, "Whether requests are taken.", open=True),
    Endpoint("GET", "/health/ready", health.ready, "Whether requests are taken.", open=True),
    Endpoint("GET", "/health/live", health.live, "Whether the server runs.", open=True),
    Endpoint("GET", "/metrics", metrics.metrics, "Figures for Prometheus."),
)  # fmt: skip
