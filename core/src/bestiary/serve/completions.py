"""Completions over JSON: the bytes of a request in, a status and a document out. It knows no HTTP library.

    GET  /health            whether the engine lives
    POST /v1/completions    {"prompt": text or token ids, and fields of `SamplingParams`}

Every refusal is ``{"error": …}`` in the form of `BestiaryError.as_dict`.
"""

from __future__ import annotations

import difflib
import logging
import math
import threading
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.api.errors import BestiaryError, EngineError, RequestError, UsageError
from bestiary.api.outputs import CompletionOutput, RequestOutput
from bestiary.api.sampling import SamplingParams
from bestiary.engine.loader.config_json import parse_json_object

if TYPE_CHECKING:
    from .llm import LLM

MAX_BODY_BYTES = 16 * 2**20
_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_OTHERS = ("prompt", "model", "stream")
_STATUS = {"NOT_FOUND": 404, "MODEL_NOT_FOUND": 404, "METHOD_NOT_ALLOWED": 405, "TOO_LARGE": 413, "QUEUE_FULL": 503}
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
            raise RequestError(f"there is nothing at {path}", code="NOT_FOUND", limit=" or ".join(_ROUTES))
        if method != wanted:
            raise RequestError(f"{path} takes no {method}", code="METHOD_NOT_ALLOWED", limit=wanted)
        return _health(llm, name) if path == "/health" else _completion(llm, name, body, gone)
    except BestiaryError as error:
        return refusal(error)
    except Exception as error:
        logging.getLogger("bestiary").exception("a request failed")
        return refusal(BestiaryError(f"{type(error).__name__}", code="INTERNAL"))


def refusal(error: BestiaryError) -> Reply:
    """The reply that says `error`."""
    usual = 400 if isinstance(error, RequestError | UsageError) else 500
    return Reply(_STATUS.get(error.error_code, usual), {"error": error.as_dict()})


def too_large() -> Reply:
    return refusal(RequestError("the request is too large", code="TOO_LARGE", limit=f"at most {MAX_BODY_BYTES} bytes"))


def _health(llm: LLM, name: str) -> Reply:
    if llm.engine.dead is not None:
        return Reply(503, {"error": llm.engine.dead.as_dict()})
    return Reply(200, {"status": "ok", "model": name})


def _completion(llm: LLM, name: str, body: bytes, gone: threading.Event) -> Reply:
    if len(body) > MAX_BODY_BYTES:
        return too_large()
    given = parse_json_object(body, name="the request", error=RequestError)
    params = _parameters(given, name)
    steps = llm.stream(_prompt(given), params)
    with closing(steps):  # type: ignore[type-var]
        request = next(steps)
        while not (request.finished or gone.is_set()):
            request = next(steps, request)
    failed = next((each for each in request.outputs if each.finish_reason == "error"), None)
    if failed is not None:
        raise EngineError(f"the answer ended with an error: {failed.stop_reason}")
    return Reply(200, _document(request, name))


def _prompt(given: dict[str, Any]) -> Any:
    prompt = given.get("prompt")
    ids = isinstance(prompt, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in prompt)
    if not isinstance(prompt, str) and not ids:
        raise RequestError("there is no prompt", field="prompt", value=prompt, limit="text, or a list of token ids")
    return prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}


def _parameters(given: dict[str, Any], model: str) -> SamplingParams:
    unknown = sorted(given.keys() - _SAMPLING - {*_OTHERS})
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*_OTHERS, *_SAMPLING], n=1)
        raise RequestError(
            f"unknown field {unknown[0]}", code="UNKNOWN_FIELD", field=unknown[0],
            limit=f"{', '.join([*_OTHERS, *sorted(_SAMPLING)])}", fix=f"did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    if given.get("stream"):
        raise RequestError("answers are not streamed here", field="stream", value=given["stream"], limit="false")
    if given.get("model") not in (None, model):
        raise RequestError(
            "another model is served here", code="MODEL_NOT_FOUND", field="model", value=given["model"], limit=model
        )
    chosen = {name: value for name, value in given.items() if name in _SAMPLING}
    if isinstance(bias := chosen.get("logit_bias"), dict):
        chosen["logit_bias"] = {_token(name): value for name, value in bias.items()}
    return SamplingParams(**chosen)


def _token(name: str) -> int:
    """JSON writes the keys of an object as text."""
    if not name.isascii() or not name.isdecimal() or len(name) > 10:
        raise RequestError("no token id", field="logit_bias", value=name, limit="token ids, as text")
    return int(name)


def _document(request: RequestOutput, model: str) -> dict[str, Any]:
    prompt, answer = len(request.prompt_token_ids), sum(len(each.token_ids) for each in request.outputs)
    return {
        "id": f"cmpl-{request.request_id}",
        "object": "text_completion",
        "model": model,
        "choices": [_choice(output) for output in request.outputs],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }


def _choice(output: CompletionOutput) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": output.index,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs is not None:
        choice["logprobs"] = [
            {str(token): each.logprob if math.isfinite(each.logprob) else None for token, each in entry.items()}
            for entry in output.logprobs
        ]
    return choice
