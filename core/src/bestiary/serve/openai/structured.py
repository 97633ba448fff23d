"""What an answer must look like: `response_format`, vLLM's `structured_outputs`, and its older `guided_…` fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.api.sampling import SamplingParams

from .parsing import Tooling
from .schemas.chat import GrammarFormat, JsonObjectFormat, JsonSchemaFormat, RegexFormat
from .schemas.responses import AnyJsonFormat, ResponsesRequest, SchemaFormat
from .schemas.sampling import SamplingFields


def structured_outputs(request: SamplingFields, tooling: Tooling | None = None) -> dict[str, Any]:
    """The argument `structured_outputs` of `SamplingParams`, or none. Raises where several things are asked for."""
    return _argument(_wanted(request) | _calls(tooling))


def structured_text(request: ResponsesRequest, tooling: Tooling) -> dict[str, Any]:
    """The same for the field `text.format` of `/v1/responses`."""
    wanted = _calls(tooling)
    match None if request.text is None else request.text.format:
        case AnyJsonFormat():
            wanted["text.format"] = {"json_object": True}
        case SchemaFormat(schema_=schema):
            wanted["text.format"] = {"json": schema}
    return _argument(wanted)


def _calls(tooling: Tooling | None) -> dict[str, dict[str, Any]]:
    """A grammar that makes the answer call a tool, where it has to."""
    return {"tool_choice": {}} if tooling is not None and tooling.forced else {}


def _argument(wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not wanted:
        return {}
    if len(wanted) > 1:
        raise RequestError(
            "an answer can have one form", field=list(wanted)[1], limit="one of response_format, structured_outputs",
            details=list(wanted),
        )  # fmt: skip
    if "structured_outputs" not in {each.name for each in fields(SamplingParams)}:
        raise RequestError("not offered", code="UNSUPPORTED_PARAMETER", field=next(iter(wanted)))
    return {"structured_outputs": next(iter(wanted.values()))}


def _wanted(request: SamplingFields) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    match getattr(request, "response_format", None):
        case JsonObjectFormat():
            found["response_format"] = {"json_object": True}
        case JsonSchemaFormat(json_schema=schema):
            found["response_format"] = {"json": schema.schema_}
        case RegexFormat(regex=regex):
            found["response_format"] = {"regex": regex}
        case GrammarFormat(grammar=grammar):
            found["response_format"] = {"grammar": grammar}
    if request.structured_outputs is not None:
        found["structured_outputs"] = request.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(request, f"guided_{name}")
        if value is not None:
            found[f"guided_{name}"] = {name: value}
    return found
