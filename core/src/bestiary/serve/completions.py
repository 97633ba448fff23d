"""Completions over JSON: the bytes of a request in, a status and a document out. It knows no HTTP library.

    GET  /health            whether the engine lives
    POST /v1/completions    as `bestiary serve` takes them, one prompt at a time and not streamed

An unknown field is refused, for there is no header to warn in. Needs the extra `serve` or `ray`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.api.errors import BestiaryError, RequestError

from .openai.body import parse_object
from .openai.completion_document import CompletionWriter, parameters
from .openai.errors import document, from_answer, internal_error, status_of
from .openai.logprobs import Spelling
from .openai.schemas.completions import CompletionRequest
from .openai.structured import stated_form
from .openai.validation import validated

if TYPE_CHECKING:
    from .llm import LLM

MAX_BODY_BYTES = 16 * 2**20
_ROUTES = {"/health": "GET", "/v1/completions": "POST"}


class Reply(NamedTuple):
    """An HTTP status, and what is sent as JSON."""

    status: int
    document: dict[str, Any]


def respond(llm: LLM, name: str, method: str, path: str, body: bytes, gone: threading.Event) -> Reply:
    """Answer one request to the model called `name`; never raises.

    Once `gone` is set nobody waits for the answer, and it is not finished.
    """
    try:
        wanted = _ROUTES.get(path)
        if wanted is None:
            raise RequestError("there is nothing at this path", code="NOT_FOUND", limit=" or ".join(_ROUTES))
        if method != wanted:
            raise RequestError("this path takes another method", code="METHOD_NOT_ALLOWED", limit=wanted)
        return _health(llm, name) if path == "/health" else _completion(llm, name, body, gone)
    except BestiaryError as error:
        return refusal(error)
    except Exception:
        logging.getLogger("bestiary").exception("a request failed")
        return refusal(internal_error())


def refusal(error: BestiaryError) -> Reply:
    """The reply that says `error`."""
    return Reply(status_of(error), document(error, uuid.uuid4().hex))


def too_large() -> Reply:
    return refusal(RequestError("the request is too large", code="TOO_LARGE", limit=f"at most {MAX_BODY_BYTES} bytes"))


def _health(llm: LLM, name: str) -> Reply:
    failure = llm.engine.failure
    return Reply(200, {"status": "ok", "model": name}) if failure is None else refusal(failure)


def _completion(llm: LLM, name: str, body: bytes, gone: threading.Event) -> Reply:
    if len(body) > MAX_BODY_BYTES:
        return too_large()
    request, _ = validated(CompletionRequest, parse_object(body), strict_fields=True)
    _check(request, name)
    sampling = parameters(request, stated_form(request), {})
    (prompt,) = request.prompt
    steps = llm.stream(prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}, sampling)
    with closing(steps):  # type: ignore[type-var]
        output = next(steps)
        while not (output.finished or gone.is_set()):
            output = next(steps, output)
    failed = next((each for each in output.outputs if each.finish_reason == "error"), None)
    if failed is not None:
        raise from_answer(failed.stop_reason)
    fields = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name}
    writer = CompletionWriter(request, lambda: Spelling(llm.get_tokenizer()))
    return Reply(200, writer.document(fields, [output]))


def _check(request: CompletionRequest, name: str) -> None:
    """What `bestiary serve` does and this does not."""
    if "model" in request.model_fields_set and request.model != name:
        raise RequestError(
            "another model is served here", code="MODEL_NOT_FOUND", field="model", value=request.model, limit=name
        )
    if request.stream:
        raise RequestError(
            "answers are not streamed here", code="UNSUPPORTED_PARAMETER", field="stream", value=True, limit="false"
        )
    if len(request.prompt) != 1:
        raise RequestError("one prompt at a time", field="prompt", value=len(request.prompt), limit="one prompt")
