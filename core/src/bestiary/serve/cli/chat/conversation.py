"""A conversation: the messages so far, and whoever answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bestiary.api.errors import UsageError
from bestiary.serve.cli.streaming import Interrupt, Writer, interruptible, stats_line

from .sampling import SamplingChoice

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `stats`: as `streaming.stats` has them. `trouble`: why it ended with an error.
    `reasoning`: what the model thought before it, where a server tells the two apart."""

    text: str
    finish_reason: str
    stats: Mapping[str, Any]
    lora_name: str | None = None
    trouble: str | None = None
    reasoning: str = ""

    @property
    def interrupted(self) -> bool:
        return self.finish_reason == "abort"

    def about(self) -> str:
        """A line about it."""
        if self.interrupted:
            return "[stopped by Ctrl-C]"
        return stats_line(self.stats, self.finish_reason if self.trouble is None else f"error: {self.trouble}")


class Responder(Protocol):
    """Who answers. `name`: of the model. `context`: how many tokens fit, where that is known."""

    name: str
    context: int | None

    def answer(
        self, messages: Sequence[Message], choice: SamplingChoice, writer: Writer | None, interrupt: Interrupt
    ) -> Answer:
        """Answer `messages`, writing as the text grows, until it ends or `interrupt` is pressed.

        Raises:
            RequestError: they are refused; nothing has happened.
        """
        ...


class Conversation:
    """The messages so far. One that is refused, or an answer that fails, leaves them as they were."""

    def __init__(self, responder: Responder, choice: SamplingChoice, system: str | None = None) -> None:
        self.responder, self.choice = responder, choice
        self.messages: list[Message] = []
        self.answers: list[Answer] = []
        self._opening = system
        self.reset()

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first is not None and first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]
        self._opening = text

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [] if self._opening is None else [{"role": "system", "content": self._opening}]

    def replace(self, messages: Sequence[Message]) -> None:
        """Go on with another conversation, and its system message."""
        self.messages = list(messages)
        self._opening = self.system

    def ask(self, text: str, writer: Writer | None) -> Answer:
        """Answer `text`; Ctrl-C ends the answer where it is, and what was said is kept.

        Raises:
            RequestError: the conversation does not fit, or it is refused.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}], writer)

    def undo(self) -> str:
        """Take back the last message and its answer; returns the message. Raises `UsageError`: there is none."""
        last = self._last_question()
        text = self.messages[last]["content"]
        self.messages = self.messages[:last]
        return text

    def regenerate(self, writer: Writer | None) -> Answer:
        """Answer the last message anew. Raises `UsageError`: there is none."""
        return self._answer(self.messages[: self._last_question() + 1], writer)

    def _last_question(self) -> int:
        places = [index for index, each in enumerate(self.messages) if each["role"] == "user"]
        if not places:
            raise UsageError("nothing has been said yet")
        return places[-1]

    def _answer(self, messages: Sequence[Message], writer: Writer | None) -> Answer:
        try:
            with interruptible() as interrupt:
                answer = self.responder.answer(messages, self.choice, writer, interrupt)
        finally:
            if writer is not None:
                writer.end()
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.answers.append(answer)
        return answer
