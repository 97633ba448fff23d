"""`Service`: what every endpoint works with, and `Call`: one request to one of them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bestiary.api.errors import BestiaryError, EngineError, RequestError

from .body import parse_object, read_body
from .body_budget import SMALL_BODY, BodyBudget
from .documents import Result
from .field_names import in_its_words
from .logprobs import Spelling
from .metrics import Metrics
from .options import ServeOptions
from .schemas.base import Request as RequestModel
from .security import ID_KEY, TENANT_KEY
from .validation import validated

if TYPE_CHECKING:
    from starlette.requests import Request

    from bestiary.serve.async_llm import AsyncLLM
    from bestiary.serve.text.parsers.formats import AnswerFormats
    from bestiary.serve.text.tokenizer import Tokenizer

    from .routes import Endpoint

logger = logging.getLogger("bestiary.http")
Wanted = TypeVar("Wanted", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request: the id it was asked for by, and the adapter; None is the model alone."""

    name: str
    lora_name: str | None


class Service:
    """The model behind the endpoints, under its names. Owns the metrics and the secret that salts are made with.

    Attributes:
        formats: how the model writes reasoning and calls. endpoints: those that are there.
        bodies: what may be read of requests at once.
        names: the ids of the model alone, the first being the one that answers show.
    """

    def __init__(
        self, llm: AsyncLLM, options: ServeOptions, formats: AnswerFormats, endpoints: tuple[Endpoint, ...]
    ) -> None:
        self.llm, self.options, self.formats, self.endpoints = llm, options, formats, endpoints
        self.metrics = Metrics(llm)
        self.bodies = BodyBudget(options.max_body)
        self.started = time.time()
        self.names = options.served_model_names or (public_name(llm.args.model),)
        self._secret = secrets.token_bytes(32)

    def ids(self) -> list[str]:
        """Every id that a request may name."""
        return [*self.names, *(each.name for each in self.llm.list_loras())]

    def target(self, request: RequestModel) -> Target:
        """What answers `request`. Raises `MODEL_NOT_FOUND`, listing the ids."""
        name = request.model
        if name is None and "model" not in request.model_fields_set:
            return Target(self.names[0], None)
        if name in self.names:
            return Target(str(name), None)
        ids = self.ids()
        if name not in ids:
            raise RequestError(
                "no such model is served here", code="MODEL_NOT_FOUND", field="model", value=name,
                limit=", ".join(ids),
            )  # fmt: skip
        return Target(str(name), str(name))

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `ENGINE_NOT_READY` as long as there is none."""
        if self.llm.tokenizer is None:
            raise EngineError("the model is not ready yet", code="ENGINE_NOT_READY", field="model")
        return self.llm.tokenizer

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.tokenizer)

    @cached_property
    def mark_ids(self) -> tuple[int, ...]:
        """Special tokens that stay in the text, because reasoning and calls are told by them."""
        return self.tokenizer.special_ids_in(self.formats.marks())

    def salt(self, tenant: str | None, own: str | None) -> str | None:
        """What keeps one tenant's prefix cache from another's: with several keys, each has a secret salt.

        `own` is the request's `cache_salt`, which divides a tenant's cache further.
        """
        if tenant is None or len(self.options.api_keys) < 2:
            return own
        message = tenant if own is None else f"{tenant}:{own}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()


def public_name(model: str) -> str:
    """What a model is called that was given without a name: of a place on this machine, the last part alone."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


@dataclass(slots=True)
class Call:
    """One request: where it came from, and what is to be said of it in the answer's headers.

    Attributes:
        large: its body was so large that work on all of it is no work for the event loop.
        understood: the body, once it is known to be a good one.
    """

    service: Service
    http: Request
    endpoint: Endpoint
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    large: bool = False
    understood: RequestModel | None = None

    @property
    def id(self) -> str:
        return str(self.http.scope[ID_KEY])

    @property
    def tenant(self) -> str | None:
        tenant: str | None = self.http.scope[TENANT_KEY]
        return tenant

    def new_id(self, prefix: str) -> str:
        """An id for what is made; a client's own request id is no such thing, for it may come twice."""
        return prefix + uuid.uuid4().hex

    async def body(self, model: type[Wanted]) -> Wanted:
        """The request's body as `model`; what is ignored of it becomes a warning."""
        options = self.service.options
        with self.service.bodies.share() as share:
            data = await read_body(self.http, options, share)

            def understood() -> tuple[Wanted, list[str]]:
                return validated(model, parse_object(data), strict_fields=options.strict_fields)

            self.large = len(data) > SMALL_BODY
            request, warnings = await self.apart(understood)
        self.warnings += warnings
        self.understood = request
        return request

    def in_its_words(self, error: BestiaryError) -> BestiaryError:
        """The error with the name that its field has in the request, if it came after the body was understood."""
        if self.understood is None:
            return error
        return in_its_words(error, type(self.understood), self.understood.model_fields_set)

    async def apart(self, work: Callable[[], Result]) -> Result:
        """What `work` on the whole of the body gives."""
        if not self.large:
            return work()
        async with self.service.bodies.turn:
            return await asyncio.to_thread(work)

    def end(self, outcome: str) -> None:
        """Whatever became of it, once: "finished", "refused", "shed", "failed" or "aborted"."""
        self.service.metrics.end(self, outcome)
        logger.info(
            "%s %s: %s after %.3f s request=%s",
            self.http.method, self.endpoint.path, outcome, time.monotonic() - self.started, self.id,
            extra={"request_id": self.id, "outcome": outcome, "path": self.endpoint.path},
        )  # fmt: skip

    def salt(self, own: str | None) -> str | None:
        return self.service.salt(self.tenant, own)

    def headers(self) -> dict[str, str]:
        """The headers of a good answer."""
        if not self.warnings:
            return {}
        return {"warning": ", ".join(f'299 - "{warning}"' for warning in self.warnings)}

    def fields(self, id_: str, kind: str, model: str) -> dict[str, Any]:
        """What every document of an answer begins with."""
        return {"id": id_, "object": kind, "created": self.created, "model": model}
