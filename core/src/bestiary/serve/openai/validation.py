"""A JSON object as the request model of its endpoint, or one error that names field, rule and value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bestiary.api.errors import RequestError

from .schemas.base import Request

Wanted = TypeVar("Wanted", bound=Request)

_PART_TYPE = re.compile(r"(?:messages|input)\[\d+\]\.content\[\d+\]\.type")
_SUBJECT = re.compile(r"(?:Value error, )?(?:\w+ should |must )?")
_MAX_WARNED = 8
_MAX_CHARS = 64


def validated(model: type[Wanted], given: dict[str, Any], *, strict_fields: bool = False) -> tuple[Wanted, list[str]]:
    """The request, and what is to be said of fields that have no effect.

    Raises:
        RequestError: UNSUPPORTED_PARAMETER for a field that is known and not offered; UNKNOWN_FIELD under
            `strict_fields`; UNSUPPORTED_INPUT for a part that is no text; BAD_MESSAGES; BAD_REQUEST for the rest.
    """
    try:
        request = model.model_validate(given)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False), given, model) from None
    unknown = sorted(request.model_extra or ())
    if unknown and strict_fields:
        raise _unknown(unknown, model)
    ignored = [f"{name} has no effect" for name in sorted(model.IGNORED & request.model_fields_set)]
    return request, ignored + [f"unknown field {_shown(name)} is ignored" for name in unknown[:_MAX_WARNED]]


def _refusal(errors: Sequence[ErrorDetails], given: dict[str, Any], model: type[Request]) -> RequestError:
    """The error at the deepest place; what else is wrong there is said too, the rest is listed."""
    raised = next((each["ctx"]["error"] for each in errors if "error" in each.get("ctx", {})), None)
    if isinstance(raised, RequestError):
        return raised
    placed = [(_place(each, given), each) for each in errors]
    place = max((place for place, _ in placed), key=_depth)
    here = [each for where, each in placed if where == place]
    rules = list(dict.fromkeys(_rule(each) for each in here))
    others = list(dict.fromkeys(f"{where} must {_rule(each)}" for where, each in placed if where != place))
    missing, root = here[0]["type"] == "missing", _root(place)
    bad = "BAD_MESSAGES" if root == "messages" else "BAD_REQUEST"
    code = "UNSUPPORTED_PARAMETER" if root in model.UNSUPPORTED else bad
    if _PART_TYPE.fullmatch(place):
        code = "UNSUPPORTED_INPUT"
    return RequestError(
        f"{place} is missing" if missing else f"{place} must {' or '.join(rules)}",
        code=code, field=place, value=None if missing else here[0]["input"],
        limit="required" if missing else " or ".join(rules).removeprefix("be "), details=others,
        fix=model.UNSUPPORTED.get(root),
    )  # fmt: skip


def _place(error: ErrorDetails, given: Any) -> str:
    """Where in the document: the parts of `loc` that lead somewhere, without pydantic's names of union members."""
    text, here = "", given
    last = len(error["loc"]) - 1
    for index, step in enumerate(error["loc"]):
        if isinstance(step, int) and isinstance(here, list) and step < len(here):
            text, here = f"{text}[{step}]", here[step]
        elif isinstance(step, str) and isinstance(here, dict) and step in here:
            text, here = f"{text}.{_shown(step)}", here[step]
        elif index == last and error["type"] == "missing":
            text = f"{text}.{step}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        text += ".role" if "role" in error["ctx"]["discriminator"] else ".type"
    return text.lstrip(".") or "body"


def _depth(place: str) -> int:
    return place.count(".") + place.count("[")


def _root(place: str) -> str:
    return re.split(r"[.\[]", place, maxsplit=1)[0]


def _rule(error: ErrorDetails) -> str:
    """What follows "must": "be a valid integer", "have at most 3 items"."""
    if error["type"] == "union_tag_invalid":
        return f"be one of {error['ctx']['expected_tags']}"
    if error["type"] in ("missing", "union_tag_not_found"):
        return "be there"
    return _SUBJECT.sub("", error["msg"])


def _unknown(names: Sequence[str], model: type[Request]) -> RequestError:
    near = difflib.get_close_matches(names[0], model.model_fields, n=1)
    return RequestError(
        f"unknown field {_shown(names[0])}", code="UNKNOWN_FIELD", field=_shown(names[0]),
        limit="fields of the API", details=[_shown(name) for name in names[1:]],
        fix=f"did you mean {near[0]}?" if near else None,
    )  # fmt: skip


def _shown(name: str) -> str:
    """A name that a client made up, fit for a header and a log."""
    return "".join(char if char.isascii() and char.isprintable() and char not in '"\\' else "?" for char in name)[
        :_MAX_CHARS
    ]
