"""`GET /openapi.json`: the API as this server has it, made from the table of endpoints and their models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from bestiary import __version__

from .documents import answer
from .schemas.base import TOKEN_ID, ErrorDocument

if TYPE_CHECKING:
    from .routes import Endpoint
    from .service import Call

_SCHEMAS = "#/components/schemas/"
_EVENT = {
    "type": "object",
    "description": "Each event of a stream: JSON, or [DONE] as the last one.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_WORDS = {
    400: "The request is refused; the error says which field, which rule and which value.",
    401: "The API key is missing or wrong.",
    403: "The host, the origin or the path is not allowed.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    409: "It is there already, or in use.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    500: "A defect; the server's log has the details under the request's id.",
    503: "Not now: the model is not ready, too many requests wait, or the server ends. See the header Retry-After.",
}


async def openapi(call: Call) -> Any:
    """The description, with the numbers of the model that is served."""
    info = call.service.llm.info
    vocabulary = None if info is None else info.vocab_size
    return answer(call, describe(call.service.endpoints, bool(call.service.options.api_keys), vocabulary))


@cache
def describe(endpoints: Sequence[Endpoint], keys: bool, vocab_size: int | None) -> dict[str, Any]:
    """An OpenAPI 3.1 document. vocab_size: the bound of token ids, where it is known."""
    schemas = _schemas(endpoints)
    if vocab_size is not None:
        for each in _token_ids(schemas):
            each["maximum"] = vocab_size - 1
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path.replace(":path", ""), {})[endpoint.method.lower()] = _operation(endpoint, keys)
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bestiary", "version": __version__, "description": "As OpenAI's clients speak it."},
        "paths": paths,
        "components": components,
    }


def _operation(endpoint: Endpoint, keys: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.run.__name__ + ("_short" if endpoint.path == "/health" else ""),
        "responses": dict(_responses(endpoint, keys)),
    }
    if "{model" in endpoint.path:
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if endpoint.takes is not None:
        found["requestBody"] = {"required": True, "content": _json(endpoint.takes)}
    if keys and not endpoint.open:
        found["security"] = [{"key": []}]
    return found


def _responses(endpoint: Endpoint, keys: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    text: dict[str, Any] = {endpoint.media_type: {"schema": {"type": "string"}}}
    content = _json(endpoint.gives) if endpoint.gives else text
    if endpoint.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    headers = {"x-request-id": {"schema": {"type": "string"}}}
    yield "200", {"description": "Done.", "headers": headers, "content": content}
    for status in endpoint.refusals(keys):
        body = endpoint.gives if endpoint.open and endpoint.gives and status == 503 else ErrorDocument
        yield str(status), {"description": _WORDS[status], "headers": headers, "content": _json(body)}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}}}


class _Plain(GenerateJsonSchema):
    """Without titles, which repeat names, and without defaults of null, which say that a field may be left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        found = super().default_schema(schema)
        if found.get("default", ...) is None:
            del found["default"]
        return found


def _schemas(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ErrorDocument, "serialization")]
    for endpoint in endpoints:
        models += [(endpoint.takes, "validation")] if endpoint.takes else []
        models += [(endpoint.gives, "serialization")] if endpoint.gives else []
    _, definitions = models_json_schema(
        list(dict.fromkeys(models)), ref_template=_SCHEMAS + "{model}", schema_generator=_Plain
    )
    found: dict[str, Any] = definitions["$defs"]
    return found


def _token_ids(value: Any) -> Iterator[dict[str, Any]]:
    """The schemas that stand for token ids."""
    if isinstance(value, dict):
        if value.get(TOKEN_ID):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _token_ids(item)
