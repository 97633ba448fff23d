"""The loop of a conversation: read, answer or obey, until there is no more."""

from __future__ import annotations

from typing import Protocol

from bestiary.api.errors import RequestError, UsageError
from bestiary.serve.cli.output import say

from .commands import COMMANDS, Chat, Leave, run, too_long_fix

_TOO_LONG = ("CONTEXT_LENGTH_EXCEEDED", "KV_CACHE_EXCEEDED", "PROMPT_EXCEEDS_STEP")


class Messages(Protocol):
    """Where messages come from."""

    def next(self) -> str | None:
        """The next one; None at the end."""
        ...


def converse(chat: Chat, messages: Messages) -> int:
    """Read messages and commands until there are no more; returns how many messages were refused."""
    refused = 0
    while (text := messages.next()) is not None:
        word, _, rest = text.partition(" ")
        if word in COMMANDS:
            try:
                run(chat, word, rest.strip())
            except Leave:
                break
        elif text.startswith("/") and word == text:
            names = ", ".join(COMMANDS)
            chat.face.refused(UsageError(f"no such command: {text[:64]}", limit=names, fix="/help"))
        elif text:
            refused += not _answer(chat, text)
    return refused


def greet(name: str) -> None:
    """Who answers, and how to go on."""
    say(f"{name}: write a message; /help lists commands, Ctrl-D leaves")


def _answer(chat: Chat, text: str) -> bool:
    try:
        answer = chat.conversation.ask(text, chat.face.writer())
    except RequestError as error:
        if error.error_code.upper() in _TOO_LONG:
            error.fix = too_long_fix()
        chat.face.refused(error)
        return False
    chat.face.answered(text, answer)
    return True
