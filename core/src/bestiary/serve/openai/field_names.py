"""Errors of the layers below, told in the words of the request: a client is to find the field in what it sent."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from bestiary.api.errors import BestiaryError, RequestError

from .schemas.base import Request
from .schemas.responses import ResponsesRequest

_PROMPT = ("prompt", "messages", "input")
_MODEL = ("model",)
NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": _PROMPT,
    "prompts": _PROMPT,
    "prompt_token_ids": _PROMPT,
    "messages": ("messages", "input"),
    "max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "lora_name": ("lora_name", "model"),
    "lora_request": _MODEL,
    "runner": _MODEL,
    "task": _MODEL,
    "request_id": (),
    "max_queue": (),
}
"""A field as the layers below call it → what it is called in requests: the one that this request states, or could. Of
some there is nothing in requests."""


def in_its_words(error: BestiaryError, model: type[Request], stated: Collection[str]) -> BestiaryError:
    """The error with a `field` of the request's; the error itself may be others' too, and stays as it is.

    Args:
        model: of the request's body. stated: the fields that it has.
    """
    if error.field is None:
        return error
    told = copy.copy(error)
    root = re.split(r"[.\[]", error.field, maxsplit=1)[0]
    if root in NAMES:
        known = [name for name in NAMES[root] if name in model.model_fields]
        name = next((each for each in known if each in stated), next(iter(known), None))
        told.field = error.field if name == root else name
    elif root == "tools" and model is ResponsesRequest:  # whose tools are flat
        told.field = error.field.replace(".function", "", 1)
    return told


@contextmanager
def about_prompt(field: str, index: int | None, *, is_text: bool) -> Iterator[None]:
    """Inside, errors about a prompt name its place.

    Args:
        index: of the prompt among several in `field`. is_text: it has no token ids that a client could look at.
    """
    try:
        yield
    except RequestError as error:
        match = re.fullmatch(r"(?:prompt|prompt_token_ids)(\[\d+\])?", error.field or "")
        if match is not None:
            place = "" if index is None else f"[{index}]"
            error.field = f"{field}{place}{'' if is_text else match[1] or ''}"
        raise
