"""A conversation: the messages so far, the model that answers them, and what its answers are shown as."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bestiary.api.errors import BestiaryError
from bestiary.api.outputs import RequestOutput
from bestiary.api.sampling import SamplingParams

from .output import clean, say, write_json_line
from .streaming import TextWriter, interruptible, stats, stats_line, stream, within_context

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and whether Ctrl-C ended it."""

    request: RequestOutput
    interrupted: bool

    @property
    def text(self) -> str:
        return self.request.outputs[0].text

    def about(self) -> str:
        """A line about it."""
        return "[stopped by Ctrl-C]" if self.interrupted else stats_line(self.request)


class Conversation:
    """The messages so far, and the model that answers them. A refused message leaves them as they were."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system: str | None = None,
        template: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self._adapter = adapter
        self._llm, self._params, self._template = llm, params, template
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Mapping[str, str]] = list(self._opening)

    def reset(self) -> None:
        self.messages = list(self._opening)

    def ask(self, text: str, writer: TextWriter | None) -> Answer:
        """Answer `text`, writing as it comes; Ctrl-C ends the answer where it is.

        Raises:
            RequestError: the conversation does not fit, or the template refuses it.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._llm.chat_ids(messages, template=self._template)
        with interruptible() as interrupt:
            params = within_context(self._llm, self._params, len(ids))
            request = stream(self._llm, ids, params, writer, interrupt, self._adapter)
        if writer is not None:
            writer.end()
        answer = Answer(request, interrupt.pressed)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer


class Face(Protocol):
    """How a conversation is shown."""

    def writer(self) -> TextWriter | None:
        """Where the answer is written while it grows."""
        ...

    def answered(self, message: str, answer: Answer) -> None: ...

    def refused(self, error: BestiaryError) -> None: ...


class TextFace:
    """Answers on standard output as they grow; what is said about them on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def writer(self) -> TextWriter:
        return TextWriter(sys.stdout)

    def answered(self, message: str, answer: Answer) -> None:
        if not self._quiet:
            say(answer.about())

    def refused(self, error: BestiaryError) -> None:
        say(clean(str(error)))


class JsonFace:
    """One JSON object a line on standard output, for each answer and each refusal; refusals are said as well."""

    def writer(self) -> None:
        return None

    def answered(self, message: str, answer: Answer) -> None:
        reason = "abort" if answer.interrupted else answer.request.outputs[0].finish_reason
        request = answer.request
        write_json_line(
            {"message": message, "answer": answer.text, "finish_reason": reason, "lora_name": request.lora_name,
             "stats": stats(request)}
        )  # fmt: skip

    def refused(self, error: BestiaryError) -> None:
        write_json_line({"error": error.as_dict()})
        say(clean(str(error)))
