"""Conversations as files: JSON, which can be read again, and Markdown, for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bestiary.api.errors import UsageError

from .conversation import Conversation, Message

ROLES = ("system", "user", "assistant")
_MARKDOWN = (".md", ".markdown")
_MAX_BYTES = 2**24
_SCHEMA = 1


def save(conversation: Conversation, path: Path, *, overwrite: bool) -> None:
    """Write the conversation whole, or not at all: as Markdown by the file's suffix, else as JSON.

    Raises:
        UsageError: the file is there already, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already", field="/save", fix=f"/save! {path} writes over it")
    text = _markdown(conversation) if path.suffix.lower() in _MARKDOWN else _json(conversation)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # it may be what could not be made
            beside.unlink()
        raise UsageError(f"{path} cannot be written: {error.strerror}", field="/save") from error


def load(path: Path) -> list[Message]:
    """The messages of a file that `save` wrote, or of a plain JSON list of messages.

    Raises:
        UsageError: it cannot be read, or is no conversation.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", field="/load") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path} is too large", field="/load", limit=f"{_MAX_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no conversation in JSON: {error}", field="/load") from error
    return _messages(found.get("messages") if isinstance(found, dict) else found, path)


def _messages(found: Any, path: Path) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise UsageError(f"{path} is no conversation", field="/load", limit='{"messages": [{"role": …, "content": …}]}')
    for index, each in enumerate(found):
        wrong = not isinstance(each, dict) or each.get("role") not in ROLES or not isinstance(each.get("content"), str)
        if wrong or (each["role"] == "system" and index):
            rule = f"role ({', '.join(ROLES)}; system only first) and content, a text"
            raise UsageError(f"message {index} of {path} is none", field="/load", limit=rule, value=each)
    return [{"role": each["role"], "content": each["content"]} for each in found]


def _json(conversation: Conversation) -> str:
    document: Mapping[str, Any] = {
        "schema": _SCHEMA,
        "model": conversation.responder.name,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "sampling": dict(conversation.choice.rows()),
        "messages": list(conversation.messages),
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _markdown(conversation: Conversation) -> str:
    parts = [f"# {conversation.responder.name}", *_sections(conversation.messages)]
    return "\n\n".join(parts) + "\n"


def _sections(messages: Sequence[Message]) -> list[str]:
    return [f"## {each['role'].capitalize()}\n\n{each['content'].strip()}" for each in messages]
