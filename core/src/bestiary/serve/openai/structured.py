"""What an answer must look like: `response_format`, vLLM's `structured_outputs`, its older `guided_…` fields, and the
calls that a request forces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError
from bestiary.api.structured import FIELD, StructuredOutputsParams
from bestiary.engine.structured.json_schema import pointer_of

from .schemas.base import plain
from .schemas.chat import GrammarFormat, JsonObjectFormat, JsonSchemaFormat, RegexFormat
from .schemas.responses import AnyJsonFormat, ResponsesRequest, SchemaFormat
from .schemas.sampling import SamplingFields

if TYPE_CHECKING:
    from bestiary.api.sampling import SamplingParams
    from bestiary.serve.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer, and the field of the request that asks for it.

    Attributes:
        patterns: regular expressions that a grammar of ours took from the request: place → expression.
    """

    field: str
    params: StructuredOutputsParams
    patterns: Mapping[str, str]

    @classmethod
    def of(cls, field: str, given: dict[str, Any], patterns: Mapping[str, str] = MappingProxyType({})) -> Form:
        """Raises `RequestError` that names `field`."""
        with _named(field):
            return cls(field, StructuredOutputsParams.of(given), patterns)


def stated_form(request: SamplingFields) -> Form | None:
    """The form that a chat or completion states. Raises where it states several."""
    return _only(_stated(request))


def text_form(request: ResponsesRequest) -> Form | None:
    """The form that a response's `text.format` states."""
    match None if request.text is None else request.text.format:
        case AnyJsonFormat():
            return Form.of("text.format", {"json_object": True})
        case SchemaFormat(schema_=schema):
            return Form.of("text.format.schema", {"json": schema})
    return None


async def check_form(llm: AsyncLLM, form: Form | None, sampling: SamplingParams) -> None:
    """Raises `RequestError`, naming the request's field, where an answer in this form cannot be had."""
    if form is None:
        return
    try:
        with _named(form.field):
            await llm.check_structured_outputs(sampling)
    except RequestError as error:
        if error.error_code == "BAD_GRAMMAR" and form.patterns:
            await _check_patterns(llm, form.patterns, sampling)
        raise


async def _check_patterns(llm: AsyncLLM, patterns: Mapping[str, str], sampling: SamplingParams) -> None:
    """Raises BAD_SCHEMA with the place of the first that cannot be enforced."""
    places = list(patterns)
    try:
        properties = {str(number): {"pattern": patterns[place]} for number, place in enumerate(places)}
        form = StructuredOutputsParams(json={"type": "object", "properties": properties})
        await llm.check_structured_outputs(replace(sampling, structured_outputs=form))
    except RequestError as error:
        match = re.fullmatch(r"/properties/(\d+)/pattern", pointer_of(error) or "")
        if match is not None:
            place = places[int(match[1])]
            raise RequestError(
                error.message.partition(", at ")[0], code="BAD_SCHEMA", field=place, value=patterns[place],
                fix="correct it, or leave it out",
            ) from None  # fmt: skip


def _stated(request: SamplingFields) -> Iterator[Form]:
    match getattr(request, "response_format", None):
        case JsonObjectFormat():
            yield Form.of("response_format", {"json_object": True})
        case JsonSchemaFormat(json_schema=schema):
            yield Form.of("response_format.json_schema.schema", {"json": schema.schema_})
        case RegexFormat(regex=regex):
            yield Form.of("response_format.regex", {"regex": regex})
        case GrammarFormat(grammar=grammar):
            yield Form.of("response_format.grammar", {"grammar": grammar})
    if request.structured_outputs is not None:
        given = {name: value for name, value in plain(request.structured_outputs).items() if value is not None}
        yield Form.of(FIELD, given)
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(request, f"guided_{name}")
        if value is not None:
            yield Form.of(f"guided_{name}", {name: value})


def _only(forms: Iterator[Form]) -> Form | None:
    found = list(forms)
    if len(found) > 1:
        raise RequestError(
            "an answer can have one form", field=found[1].field, limit=f"not together with {found[0].field}"
        )
    return found[0] if found else None


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Errors that speak of `StructuredOutputsParams` speak of the request's own field instead."""
    try:
        yield
    except RequestError as error:
        if field != FIELD and error.field is not None and error.field.startswith(FIELD):
            error.field = field
        raise
