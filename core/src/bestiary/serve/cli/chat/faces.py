"""What a conversation is shown as: text, Markdown on a terminal, or lines of JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Protocol

from bestiary.api.errors import BestiaryError
from bestiary.serve.cli.output import clean, say, write_json_line
from bestiary.serve.cli.streaming import TextWriter, Writer

from .conversation import Answer


class Face(Protocol):
    """How a conversation is shown."""

    def writer(self) -> Writer | None:
        """Where the answer is written while it grows."""
        ...

    def answered(self, message: str, answer: Answer) -> None: ...

    def refused(self, error: BestiaryError) -> None: ...


class TextFace:
    """Answers on standard output as they grow, as Markdown where that is a terminal and `plain` is not asked for; what
    is said about them on standard error."""

    def __init__(self, *, quiet: bool, plain: bool) -> None:
        self._quiet = quiet
        self._writer: Callable[[], Writer] = partial(TextWriter, sys.stdout)
        if not plain and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            from .markdown import MarkdownWriter

            self._writer = MarkdownWriter
            MarkdownWriter().end()  # what it imports is there before the first answer

    def writer(self) -> Writer:
        return self._writer()

    def answered(self, message: str, answer: Answer) -> None:
        if not self._quiet:
            say(clean(answer.about()))

    def refused(self, error: BestiaryError) -> None:
        say(clean(str(error)))


class JsonFace:
    """One JSON object a line on standard output, for each answer and each refusal; refusals are said as well."""

    def writer(self) -> None:
        return None

    def answered(self, message: str, answer: Answer) -> None:
        thought = {"reasoning": answer.reasoning} if answer.reasoning else {}
        write_json_line(
            {"message": message, **thought, "answer": answer.text, "finish_reason": answer.finish_reason,
             "lora_name": answer.lora_name, "stats": dict(answer.stats)}
        )  # fmt: skip

    def refused(self, error: BestiaryError) -> None:
        write_json_line({"error": error.as_dict()})
        say(clean(str(error)))
