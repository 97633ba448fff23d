"""What the endpoints without a body answer."""

from __future__ import annotations

from typing import Any, Literal

from .base import JsonObject, Reply


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    root: str
    parent: str | None


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]


class DeletedModel(Reply):
    id: str
    object: Literal["model"]
    deleted: Literal[True]


class Health(Reply):
    """`status` is "ok", or the state that the engine is in; `code` the error that led to it."""

    status: str
    code: str | None = None


class ServerInfo(Reply):
    model: JsonObject | None
    server: JsonObject
    defaults: JsonObject
    adapters: list[JsonObject]
    limits: dict[str, int | None]


class Quantiles(Reply):
    p50: float | None
    p90: float | None
    p99: float | None


class ServerStats(Reply):
    """Totals are of this server's life; latencies, in seconds, of the last five minutes."""

    t: float
    state: str
    running: int
    waiting: int
    kv: dict[str, int | None]
    prefix: dict[str, int]
    tokens: dict[str, int]
    requests: dict[str, int]
    preemptions: int
    latency: dict[Literal["ttft", "itl", "e2e"], Quantiles]
    restarts: int


class Description(Reply):
    """An OpenAPI document."""

    openapi: str
    info: JsonObject
    paths: dict[str, Any]
    components: JsonObject
