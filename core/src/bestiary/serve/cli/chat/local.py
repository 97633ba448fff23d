"""Answers of a model that is loaded in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bestiary.serve.cli.streaming import Interrupt, Writer, stats, stream, within_context

from .conversation import Answer, Message
from .sampling import SamplingChoice

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM


class LocalResponder:
    """`LLM` as a `Responder`."""

    def __init__(self, llm: LLM, template: str | None = None, adapter: str | None = None) -> None:
        self._llm, self._template, self._adapter = llm, template, adapter
        self.name = llm.args.model
        self.context: int | None = llm.vllm_config.model_config.max_model_len

    def answer(
        self, messages: Sequence[Message], choice: SamplingChoice, writer: Writer | None, interrupt: Interrupt
    ) -> Answer:
        ids = self._llm.chat_ids(messages, template=self._template)
        params = within_context(self._llm, choice.params, len(ids), default_length=choice.default_length)
        request = stream(self._llm, ids, params, writer, interrupt, self._adapter)
        output = request.outputs[0]
        return Answer(
            text=output.text,
            finish_reason="abort" if interrupt.pressed else str(output.finish_reason),
            stats=stats(request),
            lora_name=request.lora_name,
            trouble=str(output.stop_reason) if output.finish_reason == "error" else None,
        )
