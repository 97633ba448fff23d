"""`make_app`: the ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import BestiaryError, RequestError
from bestiary.serve.text.parsers.formats import AnswerFormats
from bestiary.serve.web import page

from .errors import internal_error, refusal, status_of
from .generations import ClientGone
from .options import ServeOptions
from .routes import ENDPOINTS, Endpoint
from .security import ID_KEY, Gate
from .service import Call, Service
from .sse import EventStream

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from bestiary.serve.async_llm import AsyncLLM

_CLIENT_CLOSED_REQUEST = 499
"""The status of an answer that nobody receives, as servers write it to their logs."""


def make_app(llm: AsyncLLM, options: ServeOptions, formats: AnswerFormats | None = None) -> Starlette:
    """The application that serves `llm`, which its caller starts and closes.

    Args:
        formats: how the model writes reasoning and tool calls (`read_formats`); None: all of an answer is content.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    endpoints = tuple(each for each in ENDPOINTS if options.metrics or each.path != "/metrics")
    service = Service(llm, options, formats or AnswerFormats(), endpoints)
    routes = [_route(Route, each, service) for each in endpoints]
    public = {each.path for each in endpoints if each.open}
    public |= {"/metrics"} if options.metrics_without_key else set()
    pages = page.routes() if options.web else []
    public |= {each.path for each in pages}
    app = Starlette(
        routes=[*routes, *pages],
        exception_handlers={HTTPException: _no_route},
        middleware=[Middleware(Gate, options=options, open_paths=public)],
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _route(route_class: Any, endpoint: Endpoint, service: Service) -> Any:
    route = route_class(endpoint.path, _handler(endpoint, service), methods=[endpoint.method])
    route.methods = {endpoint.method}  # Starlette would add HEAD
    return route


def _handler(endpoint: Endpoint, service: Service) -> Callable[[Request], Awaitable[Any]]:
    async def handle(http: Request) -> Any:
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        call = Call(service, http, endpoint)
        try:
            answer = await endpoint.run(call)
        except BestiaryError as error:
            call.end(_outcome(error))
            return _refuse(http, call.in_its_words(error))
        except (ClientGone, ClientDisconnect):
            call.end("aborted")
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except Exception:
            logging.getLogger("bestiary.http").exception("a request failed request=%s", call.id)
            call.end("failed")
            return _refuse(http, internal_error())
        if not isinstance(answer, EventStream):  # a stream counts itself when it ends
            call.end("finished")
        return answer

    return handle


def _outcome(error: BestiaryError) -> str:
    if error.error_code in ("QUEUE_FULL", "BODIES_LIMIT"):
        return "shed"
    return "refused" if status_of(error) < 500 else "failed"


async def _no_route(http: Request, error: Exception) -> Response:
    """What the router says: there is no such path, or it takes another method."""
    if getattr(error, "status_code", 0) == 405:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        wrong = RequestError(
            "this path takes another method", code="METHOD_NOT_ALLOWED", field="method", value=http.method,
            limit=allowed,
        )  # fmt: skip
    else:
        wrong = RequestError("there is nothing at this path", code="NOT_FOUND", field="path")
    return _refuse(http, wrong)


def _refuse(http: Request, error: BestiaryError) -> Response:
    return refusal(error, http.scope[ID_KEY], method=http.method, path=http.scope["path"])
