"""The table of endpoints: the router and `/openapi.json` are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from . import chat, completions, embeddings, health, lora, metrics, models, openapi, responses, server, tokenize
from .schemas.chat import ChatCompletion, ChatCompletionRequest
from .schemas.completions import Completion, CompletionRequest
from .schemas.embeddings import Embeddings, EmbeddingsRequest
from .schemas.lora import LoadAdapterRequest, UnloadAdapterRequest
from .schemas.others import DeletedModel, Description, Health, ModelCard, ModelList, ServerInfo, ServerStats
from .schemas.responses import ResponseDocument, ResponsesRequest
from .schemas.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest, TokenizerInfo

if TYPE_CHECKING:
    from .service import Call


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    Attributes:
        takes: the model of its body, if it has one. gives: the model of a good answer, where that is JSON.
        open: no key is asked for. streams: it may answer with events.
        loads: it needs the engine, which may fail.
        others: further statuses. media_type: of an answer that is no JSON.
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
    others: tuple[int, ...] = ()
    media_type: str = "text/plain"

    def refusals(self, keys: bool) -> list[int]:
        """Every other status than 200 that it may answer with, where keys are asked for or not."""
        found = {403, *self.others}
        if keys and not self.open:
            found.add(401)
        if self.takes is not None:
            found |= {400, 404, 408, 413, 415, 503}
        if self.loads:
            found |= {500, 503}
        return sorted(found)


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
    Endpoint("GET", "/tokenizer_info", tokenize.tokenizer_info, "Special tokens, and the chat template.",
             gives=TokenizerInfo, others=(503,)),
    Endpoint("POST", "/v1/load_lora_adapter", lora.load_adapter, "Load an adapter.",
             takes=LoadAdapterRequest, gives=ModelCard, loads=True, others=(409,)),
    Endpoint("POST", "/v1/unload_lora_adapter", lora.unload_adapter, "Forget an adapter.",
             takes=UnloadAdapterRequest, gives=DeletedModel, loads=True, others=(409,)),
    Endpoint("GET", "/server/info", server.info, "The model, the defaults and the limits.", gives=ServerInfo),
    Endpoint("GET", "/server/stats", server.stats, "Where things stand.", gives=ServerStats),
    Endpoint("GET", "/v1/models", models.list_models, "The models that can be named.", gives=ModelList),
    Endpoint("GET", "/v1/models/{model:path}", models.retrieve_model, "One of them.", gives=ModelCard, others=(404,)),
    Endpoint("GET", "/health", health.ready, "Whether requests are taken.", gives=Health, open=True,
             others=(503,)),
    Endpoint("GET", "/health/ready", health.ready, "Whether requests are taken.", gives=Health, open=True,
             others=(503,)),
    Endpoint("GET", "/health/live", health.live, "Whether the server runs.", gives=Health, open=True),
    Endpoint("GET", "/openapi.json", openapi.openapi, "This description.", gives=Description),
    Endpoint("GET", "/metrics", metrics.metrics, "Figures for Prometheus."),
)  # fmt: skip
