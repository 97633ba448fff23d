"""`ServeOptions`: what the HTTP layer is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bestiary.api.errors import UsageError
from bestiary.api.sampling import SamplingParams

MAX_BODY_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How the server behaves towards its clients.

    Attributes:
        host, port: where it listens; they also decide which `Host` headers are believed.
        api_keys: any of them opens every endpoint but `/health/*` and the page; none: no key is asked for.
        served_model_names: ids of the model; empty: what the user called it.
        allowed_hosts: further values of the `Host` header, without port; "*" is every one.
        cors_origins: web pages of other origins that may call; "*" is every one.
        max_body: bytes of a request's body. strict_fields: an unknown field is an error and no warning.
        write_timeout: seconds a client may leave a stream unread. heartbeat: seconds of silence before a comment line.
        read_timeout: seconds a client may take to send its body.
        lora_dir: adapters may be loaded at run time from below this directory; None: not at all.
        chat_template: used in place of the checkpoint's. allow_request_template: a request may bring its own.
        tool_call_parser, reasoning_parser: names, or "auto".
        sampling: parameters of requests that say nothing of them, checked as `SamplingParams`.
        metrics: whether `/metrics` exists. metrics_without_key: whether it is open.
        web: whether the page is served at `/`. log_requests: a line for every request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = MAX_BODY_BYTES
    strict_fields: bool = False
    write_timeout: float = 30.0
    heartbeat: float = 15.0
    read_timeout: float = 60.0
    lora_dir: Path | None = None
    chat_template: str | None = None
    allow_request_template: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    metrics: bool = True
    metrics_without_key: bool = False
    web: bool = True
    log_requests: bool = False

    def __post_init__(self) -> None:
        SamplingParams(**self.sampling)
        for key in self.api_keys:
            if not (key.isascii() and key.isprintable() and key and " " not in key):
                raise UsageError("this is no API key", field="--api-key", limit="printable ASCII without spaces")
