"""The table of endpoints: the router and `/openapi.json` are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from . import chat, completions, health, metrics, models
from .schemas.chat import ChatCompletion, ChatCompletionRequest
from .schemas.completions import Completion, CompletionRequest

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
    Endpoint("GET", "/v1/models", models.list_models, "The models that can be named."),
    Endpoint("GET", "/v1/models/{model:path}", models.retrieve_model, "One of them."),
    Endpoint("GET", "/health", health.ready, "Whether requests are taken.", open=True),
    Endpoint("GET", "/health/ready", health.ready, "Whether requests are taken.", open=True),
    Endpoint("GET", "/health/live", health.live, "Whether the server runs.", open=True),
    Endpoint("GET", "/metrics", metrics.metrics, "Figures for Prometheus."),
)  # fmt: skip
