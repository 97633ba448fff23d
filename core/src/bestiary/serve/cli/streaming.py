"""Text as it comes: written safely, stopped between steps, and measured."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

from bestiary.api.errors import RequestError
from bestiary.api.outputs import RequestOutput
from bestiary.api.sampling import SamplingParams

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM


class Writer(Protocol):
    """Shows an answer while it grows."""

    def think(self, text: str) -> None:
        """The reasoning so far, before the first of the answer."""
        ...

    def update(self, text: str) -> None:
        """The text so far: what was shown is a beginning of it."""
        ...

    def end(self) -> None:
        """The answer is over, however it ended."""
        ...


def printable(text: str) -> str:
    """`text` without the control characters that a model may produce, which would move the terminal's cursor."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


class TextWriter:
    """Writes growing text as it is. On a terminal, control characters are left out, and reasoning is written dimmed;
    elsewhere there is no reasoning, for what is read there is the answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._written = self._thought = 0
        self._last = "\n"

    def think(self, text: str) -> None:
        new = text[self._thought :]
        if self._terminal and new:
            self._thought = len(text)
            self._last = new[-1]
            self._stream.write(f"\x1b[2m{printable(new)}\x1b[0m")
            self._stream.flush()

    def update(self, text: str) -> None:
        """Write what `text` has beyond what was written of it."""
        new = text[self._written :]
        self._written = len(text)
        if self._thought and new:
            self.end()
            self._written = len(text)
            self.write("\n")
        if new:
            self.write(new)

    def write(self, text: str) -> None:
        self._last = text[-1:] or self._last
        if self._terminal:
            text = printable(text)
        self._stream.write(text)
        self._stream.flush()

    def end(self) -> None:
        """End the line, if one is begun."""
        if self._last != "\n":
            self.write("\n")
        self._written = self._thought = 0


class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first Ctrl-C is only noted, so that a step in progress is not torn apart; a second one is raised."""
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if state.pressed:
            raise KeyboardInterrupt
        state.pressed = True

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)


def stream(
    llm: LLM,
    ids: Sequence[int],
    params: SamplingParams,
    writer: Writer | None,
    interrupt: Interrupt | None = None,
    adapter: str | None = None,
) -> RequestOutput:
    """Generate, writing the first answer as it grows; ends early when `interrupt` is pressed."""
    request: RequestOutput | None = None
    with closing(llm.stream({"prompt_token_ids": list(ids)}, params, lora_request=adapter)) as steps:  # type: ignore[type-var]
        for request in steps:
            if writer is not None:
                writer.update(request.outputs[0].text)
            if interrupt is not None and interrupt.pressed:
                break
    if request is None:
        raise KeyboardInterrupt
    return request


def require_template(llm: LLM, given: str | None, fix: str) -> None:
    """Raise `RequestError`, whose `fix` fits the command line, unless there is a chat template."""
    if given is None and llm.get_tokenizer().chat_template is None:
        raise RequestError("this model has no chat template", field="chat_template", fix=fix)


def is_given(ctx: click.Context | None, name: str) -> bool:
    """Whether somebody has set the option of this parameter, in whatever place."""
    return ctx is not None and ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def within_context(llm: LLM, params: SamplingParams, prompt_tokens: int, *, default_length: bool) -> SamplingParams:
    """`params`, but a `max_tokens` that nobody asked for gives way to what the context has room for."""
    room = llm.vllm_config.model_config.max_model_len - prompt_tokens
    tight = params.max_tokens is not None and params.max_tokens > room
    gives_way = default_length and tight and params.min_tokens <= max(room, 0)
    return replace(params, max_tokens=None) if gives_way else params


def stats(request: RequestOutput) -> dict[str, float | int | None]:
    """Counts, seconds, and the rate of tokens after the first (tokens a second; None where there is one token)."""
    metrics = request.metrics
    tokens = sum(len(output.token_ids) for output in request.outputs)
    first = None if metrics.first_token is None else metrics.first_token - metrics.arrival
    total = None if metrics.finished is None else metrics.finished - metrics.arrival
    rest = None if first is None or total is None else total - first
    later = tokens - len(request.outputs)
    return {
        "prompt_tokens": len(request.prompt_token_ids),
        "cached_tokens": metrics.cached_tokens,
        "generated_tokens": tokens,
        "time_to_first_token_s": first,
        "total_s": total,
        "tokens_per_s": later / rest if rest and later > 0 else None,
    }


def stats_line(found: Mapping[str, Any], ended_by: str) -> str:
    """The same in one line, with why the answer ended. What a server does not tell is left out."""
    parts = []
    if found["prompt_tokens"] is not None:
        parts.append(f"{found['prompt_tokens']} prompt tokens, {found['generated_tokens']} generated")
    if found["total_s"] is not None:
        parts.append(f"{found['total_s']:.2f} s")
    if found["time_to_first_token_s"] is not None:
        parts.append(f"first token after {found['time_to_first_token_s']:.2f} s")
    if found["tokens_per_s"] is not None:
        parts.append(f"then {found['tokens_per_s']:.1f} tokens/s")
    return f"[{', '.join(parts)}, ended by {ended_by}]"


def ended_by(request: RequestOutput) -> str:
    """Why its answers ended."""
    return " and ".join(dict.fromkeys(str(output.finish_reason) for output in request.outputs))
