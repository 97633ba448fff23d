"""What all request models share: strict types, fields that are known but do nothing, fields that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

MAX_BATCH = 256
"""Most prompts, or texts, in one request."""

TOKEN_ID = "x-token-id"
"""Marks the schema of a token id, whose bound is the model's."""


def _whole(value: object) -> object:
    """JSON has one kind of number: 7.0 is the integer 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
JsonObject: TypeAlias = dict[str, Any]
Absent: TypeAlias = SkipJsonSchema[None]
"""None as a default that a client cannot send."""
ModelName: TypeAlias = Annotated[
    str, Field(description="An id of GET /v1/models; left out, the model without an adapter.")
]


class Strict(BaseModel):
    """Nothing is converted: "7" and true are no integers. Fields nobody knows are kept aside in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)


def plain(value: Any) -> Any:
    """A part of a request as data, as it was sent: what was left out stays out."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.model_dump(by_alias=True, exclude_unset=True) if isinstance(value, BaseModel) else value


class Request(Strict):
    """A request's body.

    Attributes:
        IGNORED: fields accepted for the sake of clients and without effect; the answer's `warning` header says so.
        UNSUPPORTED: fields that change answers in a way that is not offered → what to do instead. Their type is the
            value that asks for what happens anyway.
    """

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    UNSUPPORTED: ClassVar[Mapping[str, str | None]] = {}

    model: ModelName | Absent = None


class Reply(BaseModel):
    """A document that is sent. Built by hand where it is sent often; the tests hold it against its model."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(Reply):
    """`param` is the field; `limit` the rule; `fix` what to do."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str
    limit: str | None = None
    value: str | float | bool | None = None
    details: list[str] | None = None
    fix: str | None = None


class ErrorDocument(Reply):
    error: ErrorBody
