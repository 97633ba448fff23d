"""A conversation as a caller gives it, checked and copied, so that a template sees plain data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from bestiary.api.errors import RequestError

_DEPTH_LIMIT = 48
_EXAMPLE = '{"role": "user", "content": "…"}'


def check_messages(messages: object, *, join_parts: bool) -> object:
    """A copy of `messages`: a list of objects with a role, and a content or tool calls.

    Args:
        join_parts: make one text of a content that is a list of text parts, one line each.

    Raises:
        RequestError: `BAD_MESSAGES`, naming the message; `UNSUPPORTED_INPUT`, naming the part that is no text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise RequestError("messages are a list", code="BAD_MESSAGES", field="messages", value=messages)
    return _List([_message(message, index, join_parts) for index, message in enumerate(messages)])


def _message(message: object, index: int, join_parts: bool) -> object:
    field = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise _bad("a message is an object with a role", field, message, fix=_EXAMPLE)
    if not isinstance(message.get("role"), str):
        raise _bad("a message is an object with a role", f"{field}.role", message.get("role"), fix=_EXAMPLE)
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise _bad(f"message {index} has no content", f"{field}.content", fix=_EXAMPLE)
    if content is not None and not isinstance(content, str | list | tuple):
        raise _bad("a message's content is a text or a list of parts", f"{field}.content", content)
    if isinstance(content, list | tuple):
        texts = [part_text(part, f"{field}.content[{number}]") for number, part in enumerate(content)]
        if join_parts:
            message = {**message, "content": "\n".join(texts)}
    return plain(message, field)


def part_text(part: object, field: str) -> str:
    """The text of one part of a content. Raises RequestError for what is none."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise _bad("a part of a content is an object with a type", field, part, fix='{"type": "text", "text": "…"}')
    if kind != "text":
        raise RequestError(
            "text models take text only", code="UNSUPPORTED_INPUT", field=field, limit='{"type": "text"}', value=kind
        )
    if not isinstance(part.get("text"), str):
        raise _bad("a text part has a text", f"{field}.text", part.get("text"))
    return str(part["text"])


def _bad(message: str, field: str, value: object = None, fix: str | None = None) -> RequestError:
    return RequestError(message, code="BAD_MESSAGES", field=field, value=value, fix=fix)


class _Dict(dict[str, object]):
    """A mapping whose methods a template may call, except those that change or copy it."""

    def _immutable(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a chat template cannot change its input")

    clear = copy = fromkeys = pop = popitem = setdefault = update = _immutable


class _List(list[object]):
    """A sequence whose methods a template may call, except those that change or copy it."""

    def _immutable(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a chat template cannot change its input")

    append = clear = copy = extend = insert = pop = remove = reverse = sort = _immutable


def plain(value: object, field: str, depth: int = 0, *, code: str = "BAD_MESSAGES") -> object:
    """A copy made of JSON's types only: a template sees no foreign object, and the caller's data stay as they are.

    Raises:
        RequestError: with `code`, for what is too deep, no plain data, or no Unicode.
    """
    if depth > _DEPTH_LIMIT:
        raise RequestError("too deeply nested", code=code, field=field, limit=f"≤ {_DEPTH_LIMIT} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _unicode(value, field, code)
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        items = ((str(name), item) for name, item in value.items())
        return _Dict({_unicode(name, field, code): plain(item, field, depth + 1, code=code) for name, item in items})
    if isinstance(value, list | tuple):
        return _List([plain(item, field, depth + 1, code=code) for item in value])
    raise RequestError("not plain data", code=code, field=field, value=type(value).__name__)


def _unicode(text: str, field: str, code: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "the text holds half of a surrogate pair and is not Unicode"
        raise RequestError(message, code=code, field=field, value=text[error.start]) from None
    return str(text)
